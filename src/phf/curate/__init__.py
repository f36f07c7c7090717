"""What a corpus holds, and what of it one wants: statistics, balance, samples, import and export."""
