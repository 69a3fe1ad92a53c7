"""What becomes of a domain's XML on its way: from what the admin asked for and what CHECK_SOURCE found. Pure."""

from __future__ import annotations

from host.domain_edit import Changes, NewLayer, NewNetwork
from wire.facts import DiskFacts, DomainFacts
from wire.placement import Placement
from wire.records import Migration


def changes_for(migration: Migration, facts: DomainFacts, drives: frozenset[str], *, live: bool) -> Changes:
    """The changes to the domain's XML; `drives` are the targets of its drives for media.

    The XML of the running domain, `live`, gets the chain of each disk written out, and zeros detected where an image is
    preallocated: mirrored as they are, they would take room. Its definition only says what the admin had it say.
    """
    placement = migration.placement(facts)
    chains = {disk.target: _chain(disk, placement) for disk in facts.mirrored if disk.layers and live}
    if migration.flatten:
        chains = {disk.target: () for disk in facts.mirrored}
    return Changes(
        name=migration.new_name,
        paths=placement.changed(),
        chains=chains,
        networks={
            (each.here.kind, each.here.name): NewNetwork(kind=each.there.kind, name=each.there.name)
            for each in migration.network_maps},
        ejected=drives if migration.eject_cdrom else frozenset(),
        thin=frozenset(disk.target for disk in facts.mirrored if disk.preallocated and live),
    )


def _chain(disk: DiskFacts, placement: Placement) -> tuple[NewLayer, ...]:
    return tuple(NewLayer(path=placement.path(layer.path), format=layer.format.value) for layer in disk.layers)
