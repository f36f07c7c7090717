"""Pages as chains of states that end: laws, order, ergodicity, a judge's errors, ways back, and the truths they are held to (docs/dynamics.md)."""
