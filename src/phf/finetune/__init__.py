"""`phf finetune`: a run's policy trained further on feedback."""
