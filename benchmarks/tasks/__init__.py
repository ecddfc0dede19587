"""What is measured.  Nothing here imports a peer: each function is written once, for any of them."""
