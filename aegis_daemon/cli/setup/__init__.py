"""`aegis setup`: the command and its steps, what it asks a person, and a server by its address."""
