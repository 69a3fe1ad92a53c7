"""The datagram layer over real UDP on the loopback, between real processes that are killed, flooded and replayed to.

Needs neither root nor libvirt: the agents' steps do nothing but write down that they were run. With root two tests see
more: a file system that is really full, and every datagram that an agent sends, wherever to.
"""
