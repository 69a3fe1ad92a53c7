"""The KVM host as the steps see it: libvirt, images, SSH, files. Only this package imports libvirt and paramiko."""
