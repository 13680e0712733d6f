"""What is seen: from files to a Batch of views. Knows the ground and not who learns."""
