"""The audit log: what was asked, decided and done, in one chain that shows every later change."""
