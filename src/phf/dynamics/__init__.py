"""The model as a Markov chain of pages: switching, ergodicity, hazards, and what a page's end makes it forget."""
