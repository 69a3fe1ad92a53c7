"""What a person sees on a terminal: the real command in tmux, against agents on loopback that do as a file says."""
