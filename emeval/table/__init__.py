"""Tables from run folders and from the paper."""
