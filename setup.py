"""Installs the two commands. The controller needs nothing but Python; a node needs the extra `agent`."""

from pathlib import Path

from setuptools import setup

setup(
    name="vmmigration",
    version="0.6.0",
    description="Moves a running KVM virtual machine, with its disks, between two hosts that share no storage",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.9",
    py_modules=["vmmigration", "controller", "agent", "udpmodule", "constant"],
    packages=["console", "control", "host", "steps", "steps.checks", "wire"],
    package_data={"console": ["locale/*/LC_MESSAGES/*.mo"]},
    install_requires=[],
    extras_require={"agent": ["libvirt-python>=6.8", "paramiko>=2.7"]},
    entry_points={"console_scripts": ["vmmigration = vmmigration:main", "vmmigration-agent = agent:main"]},
)
