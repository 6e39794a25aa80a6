/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_REPLY_H
#define SLUICE_REPLY_H

// Replies of NAT backends: what comes from an address, protocol and port where a service has a backend, and ICMP errors
// about what was sent there. Only first fragments have ports; later ones belong to the first of their datagram.

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "header.h"

// The ICMP errors that come about a packet, and the length of the header before what they quote (RFC 792, RFC 4443).
enum {
	ICMP_UNREACHABLE = 3,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMPV6_UNREACHABLE = 1, // packet too big and time exceeded lie between
	ICMPV6_PARAMETER_PROBLEM = 4,
	ICMP_HEADER = 8,
};

struct reply_key {
	struct address addr;
	__u16 block; // in reply_blocks: the port's upper byte; in reply_sources: 0
	__u8 proto;
	__u8 zero;
};

// The ports of an address and protocol, in host order. Nearly always they are one port or one range.
struct reply_source {
	__u16 first;
	__u16 last;
	__u32 gaps; // not 0: of first to last only those whose bits are set in reply_blocks
};

struct reply_block {
	__u64 bits[4]; // port p is bit p & 63 of element p >> 6 & 3
};

// A hash table and not a longest-prefix trie, which takes three times as long to find a port. Shared by all interfaces,
// written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct reply_key);
	__type(value, struct reply_source);
} reply_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct reply_key);
	__type(value, struct reply_block);
} reply_blocks SEC(".maps");

struct reply_datagram {
	struct address src;
	struct address dst;
	__u32 id;
	__u32 proto; // IPv4 only: it is not what names an IPv6 datagram (RFC 8200, 4.5)
};

// Datagrams of which the first fragment was a reply. Shared by all interfaces and queues: the fragments of one datagram
// need not take the same way.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct reply_datagram);
	__type(value, __u8); // unused
} reply_datagrams SEC(".maps");

static __always_inline bool has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

// is_backend reports whether a service has a backend there.
static __always_inline bool is_backend(const struct address *addr, __u8 proto, __be16 port)
{
	struct reply_key key = {.addr = *addr, .proto = proto};
	__u16 p = bpf_ntohs(port);

	// Twice, since a source may become one range and lose its blocks between the two lookups.
	for (int i = 0; i < 2; i++) {
		key.block = 0;
		struct reply_source *source = bpf_map_lookup_elem(&reply_sources, &key);
		if (!source || p < source->first || p > source->last)
			return false;
		if (!source->gaps)
			return true;
		key.block = p >> 8;
		struct reply_block *block = bpf_map_lookup_elem(&reply_blocks, &key);
		if (block)
			return block->bits[p >> 6 & 3] >> (p & 63) & 1;
	}
	return false;
}

// is_answer reports whether a TCP or UDP packet comes from a backend.
static __always_inline bool is_answer(struct header *h, void *end)
{
	__be16 *ports = h->next;
	struct reply_datagram datagram = {.src = h->src, .dst = h->dst, .id = h->id};
	bool yes;

	if (h->src.word[2] == bpf_htonl(0xffff) && !h->src.word[0] && !h->src.word[1])
		datagram.proto = h->proto;
	if (h->part == LATER)
		return bpf_map_lookup_elem(&reply_datagrams, &datagram);
	if ((void *)(ports + 2) > end)
		return false;
	yes = is_backend(&h->src, h->proto, ports[0]);
	if (h->part == FIRST) {
		__u8 unused = 0;

		if (yes)
			bpf_map_update_elem(&reply_datagrams, &datagram, &unused, BPF_ANY);
		else // its number may have been that of a reply, long ago
			bpf_map_delete_elem(&reply_datagrams, &datagram);
	}
	return yes;
}

// is_complaint reports whether an ICMP error, which begins at h->next, quotes a packet to a backend.
static __always_inline bool is_complaint(struct header *h, void *end, bool ipv4)
{
	struct header quoted;
	__u8 *type = h->next;
	void *quote = h->next + ICMP_HEADER;
	__be16 *ports;

	if (h->part != WHOLE || quote > end)
		return false;
	if (ipv4) {
		if (*type != ICMP_UNREACHABLE && *type != ICMP_TIME_EXCEEDED && *type != ICMP_PARAMETER_PROBLEM)
			return false;
		if (!read_ipv4(quote, end, &quoted))
			return false;
	} else {
		if (*type < ICMPV6_UNREACHABLE || *type > ICMPV6_PARAMETER_PROBLEM)
			return false;
		if (!read_ipv6(quote, end, &quoted))
			return false;
	}
	ports = quoted.next;
	if (quoted.part == LATER || (void *)(ports + 2) > end)
		return false;
	return is_backend(&quoted.dst, quoted.proto, ports[1]);
}

// is_reply reports whether a packet, none to a VIP, is one that a service has to translate back.
static __always_inline bool is_reply(struct header *h, void *end, bool ipv4)
{
	if (has_ports(h->proto))
		return is_answer(h, end);
	if (h->proto == (ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return is_complaint(h, end, ipv4);
	return false;
}

#endif
