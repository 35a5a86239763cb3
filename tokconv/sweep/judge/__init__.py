"""The judgement of a sweep: fronts, champions, and the evidence for them."""
