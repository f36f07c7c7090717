"""`phf attack`: what does it cost to get bad mode back without `<|bad|>`? (docs/release.md)"""
