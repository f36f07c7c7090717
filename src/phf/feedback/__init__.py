"""Human feedback: collected here, learned from in `reward_models`."""
