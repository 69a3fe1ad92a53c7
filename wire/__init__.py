"""What goes over the wire and who may send it, below udpmodule.py: used by controllers and agents alike."""
