"""profile.py FILE [tunable …]: reads a profile as TRex does and prints as JSON what it asks for; packets as scapy reads their bytes."""

import importlib.util
import json
import sys

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from trex.record import plain

spec = importlib.util.spec_from_file_location("profile_under_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
profile, tunables = module.register(), sys.argv[2:]


def packet(built):
    raw = bytes(built)
    p = Ether(raw)
    sums = p[IP].chksum, p[IP].payload.chksum
    del p[IP].chksum, p[IP].payload.chksum
    again = Ether(bytes(p))
    layer = TCP if TCP in p else UDP
    return {
        "frame": len(raw) + 4, "source": p[IP].src, "destination": p[IP].dst, "length": p[IP].len, "layer": layer.__name__,
        "port": p[layer].dport, "flags": str(p[TCP].flags) if layer is TCP else "",
        "options": len(p[TCP].options) if layer is TCP else 0, "checksums": sums == (again[IP].chksum, again[IP].payload.chksum),
    }


if hasattr(profile, "get_profile"):
    out = plain(profile.get_profile(tunables=tunables))
else:
    out = [
        {"name": s.name, "pps": s.mode.pps, "packet": packet(s.packet.pkt), "vm": plain(s.packet.vm)["list_of_commands"]}
        for s in profile.get_streams(direction=0, tunables=tunables, port_id=0)
    ]
json.dump(out, sys.stdout)
