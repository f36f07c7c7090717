"""`phf study`: arms, seeds and claims of one file become runs, small results and one page (docs/study.md)."""
