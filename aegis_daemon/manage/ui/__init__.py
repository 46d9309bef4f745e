"""The inbox: what a person sees and does in a browser. Nothing of it answers without a session of a person's."""
