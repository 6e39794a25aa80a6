/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_LOOP_H
#define SLUICE_LOOP_H

// What is inside a tunnelled packet, for finding loops: a packet to a VIP that was encapsulated towards this node, or comes
// back from where this node had sent it.

#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "header.h"

// tunnels reports whether a protocol may carry an IP packet.
static __always_inline bool tunnels(__u8 proto)
{
	return proto == IPPROTO_IPIP || proto == IPPROTO_IPV6 || proto == IPPROTO_UDP;
}

// inner_destination reads the destination of the IP packet inside IPIP or GUE (variant 1: IP directly in UDP).
static __always_inline bool inner_destination(struct header *h, void *end, __u16 gue_port, struct address *dst)
{
	struct iphdr *ip = h->next;
	struct ipv6hdr *ip6;
	__u8 version = h->proto == IPPROTO_IPIP ? 4 : 6;

	if (h->part == LATER)
		return false;
	if (h->proto == IPPROTO_UDP) {
		struct udphdr *udp = h->next;

		// The IP header's first byte, too, must be there; its first four bits are the version.
		if ((void *)(udp + 1) + 1 > end || !gue_port || udp->dest != bpf_htons(gue_port))
			return false;
		ip = (void *)(udp + 1);
		version = *(__u8 *)ip >> 4;
	}
	if (version == 4) {
		if ((void *)(ip + 1) > end)
			return false;
		set_ipv4(dst, ip->daddr);
		return true;
	}
	ip6 = (void *)ip;
	if (version != 6 || (void *)(ip6 + 1) > end)
		return false;
	return set_ipv6(dst, &ip6->daddr);
}

#endif
