/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_TRANSPORT_H
#define SLUICE_TRANSPORT_H

// The destination port of a packet to a VIP.

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>

#include "header.h"

// A key of a trie of destinations.
struct destination {
	__u32 bits; // of the rest that count: all but the last bits of the port
	struct address vip;
	__u8 proto;
	__u8 zero;
	__be16 port;
};

#define DESTINATION_BITS 160 // of all of a destination

// Extension headers, as the worker follows them; what has more it refuses.
enum {
	EXTENSION_HEADERS = 8,
	EXTENSION_BYTES = 256,
};

struct extension_header {
	__u8 nexthdr;
	__u8 length; // in eight bytes, without the first eight
	__be16 offset;
	__u32 rest;
};

// transport reads protocol and destination port of a packet whose IP header is in the frame, and returns where its transport
// header begins, of which the ports are in the frame; NULL if the packet has no ports: further fragments, ICMP, and what the
// worker refuses.
static __always_inline void *transport(void *l3, void *end, bool ipv4, struct destination *to)
{
	__u32 off;
	__u8 proto;

	if (ipv4) {
		struct iphdr *ip = l3;

		if (ip->frag_off & bpf_htons(IP_OFFSET))
			return NULL;
		off = ip->ihl * 4;
		proto = ip->protocol;
	} else {
		proto = ((struct ipv6hdr *)l3)->nexthdr;
		off = sizeof(struct ipv6hdr);
		for (int i = 0; i < EXTENSION_HEADERS; i++) {
			struct extension_header *h = l3 + off;
			bool fragment = proto == IPPROTO_FRAGMENT;

			if (!fragment && proto != IPPROTO_HOPOPTS && proto != IPPROTO_ROUTING && proto != IPPROTO_DSTOPTS)
				break;
			if ((void *)(h + 1) > end || (fragment && h->offset & bpf_htons(0xfff8)))
				return NULL;
			off += 8 + (fragment ? 0 : h->length * 8);
			if (off > sizeof(struct ipv6hdr) + EXTENSION_BYTES)
				return NULL;
			proto = h->nexthdr;
		}
	}
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return NULL;
	__be16 *ports = l3 + off;

	if ((void *)(ports + 2) > end)
		return NULL;
	to->proto = proto;
	to->port = ports[1];
	return ports;
}

#endif
