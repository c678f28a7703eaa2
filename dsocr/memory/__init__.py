"""Planning and measuring memory."""
