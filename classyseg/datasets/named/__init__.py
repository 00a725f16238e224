"""The public data sets by name, each as its publisher lays it out."""
