"""What other programs write in their configuration files is known here, as data, and nowhere else."""
