"""One file for each thing that `aegis doctor` looks at; each reads, and none writes unless it is asked to mend."""
