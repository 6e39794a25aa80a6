"""What the stateless profiles have in common: the tunables, and the variation of source and port.

A profile is read by TRex's console or its Python client, with `-t` or `tunables`:

    start -f imix.py -m 10mpps -d 30 -t --vip 192.0.2.10 --flows 1000000

Loaded from beside the profiles, whose folder is not on Python's path in TRex.
"""

import argparse
import ipaddress

from trex.stl.api import (
    CTRexVmInsFixHwCs,
    STLScVmRaw,
    STLVmFixChecksumHw,
    STLVmFlowVar,
    STLVmTupleGen,
    STLVmWrFlowVar,
)

FIRST_PORT, LAST_PORT = 1024, 65535


def parse(tunables, description, **defaults):
    """Reads the tunables of a profile; defaults are those that differ from the usual ones."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--vip", required=True, help="destination address, IPv4")
    p.add_argument("--port", type=int, help="destination port")
    p.add_argument("--source", help="first source address")
    p.add_argument("--sources", type=int, help="source addresses from there on")
    p.add_argument("--flows", type=int, help="flows in all")
    p.add_argument("--pps", type=float, help="packets per second, before the multiplier of start (-m)")
    usual = {"port": 80, "source": "198.18.0.1", "sources": 256, "flows": 1000, "pps": 1000.0}
    p.set_defaults(**{**usual, **defaults})
    args = p.parse_args(tunables)
    ipaddress.IPv4Address(args.vip)
    if not 1 <= args.port <= 65535:
        p.error("--port: found %d, expected 1 to 65535" % args.port)
    if args.pps <= 0:
        p.error("--pps: found %g, expected more than 0" % args.pps)
    if args.sources < 1 or int(ipaddress.IPv4Address(args.source)) + args.sources - 1 > 2**32 - 1:
        p.error("--sources: %d addresses do not follow %s" % (args.sources, args.source))
    args.sources = min(args.sources, args.flows)
    per_source = -(-args.flows // args.sources) if args.flows > 0 else 0
    if not 1 <= per_source <= LAST_PORT - FIRST_PORT + 1:
        p.error("--flows: %d of %d sources, expected 1 to %d for each" % (args.flows, args.sources, LAST_PORT - FIRST_PORT + 1))
    args.per_source = per_source
    return args


def last_source(args):
    return str(ipaddress.IPv4Address(args.source) + args.sources - 1)


def checksum(layer):
    """Leaves the checksums of IP and of what is above to the card."""
    kind = {"TCP": CTRexVmInsFixHwCs.L4_TYPE_TCP, "UDP": CTRexVmInsFixHwCs.L4_TYPE_UDP}[layer]
    return STLVmFixChecksumHw(l3_offset="IP", l4_offset=layer, l4_type=kind)


def in_turn(args, layer):
    """One flow after the other: each source with each of its ports."""
    return STLScVmRaw([
        STLVmTupleGen(name="from", ip_min=args.source, ip_max=last_source(args),
                      port_min=FIRST_PORT, port_max=FIRST_PORT + args.per_source - 1,
                      limit_flows=args.sources * args.per_source),
        STLVmWrFlowVar(fv_name="from.ip", pkt_offset="IP.src"),
        STLVmWrFlowVar(fv_name="from.port", pkt_offset=layer + ".sport"),
        checksum(layer),
    ])


def at_random(args, layer, *more):
    """Any source with any port, each time, and further instructions before the checksums."""
    return STLScVmRaw([
        STLVmFlowVar(name="ip", min_value=args.source, max_value=last_source(args), size=4, op="random"),
        STLVmFlowVar(name="port", min_value=FIRST_PORT, max_value=LAST_PORT, size=2, op="random"),
        STLVmWrFlowVar(fv_name="ip", pkt_offset="IP.src"),
        STLVmWrFlowVar(fv_name="port", pkt_offset=layer + ".sport"),
        *more,
        checksum(layer),
    ])


def pad(packet, size):
    """Fills a packet up to a frame of so many bytes, of which the card adds the last four."""
    return packet / (b"x" * max(0, size - 4 - len(packet)))
