"""`mixsup demo`: a data set drawn on the spot, and the comparison that is run on it."""
