/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_ACL_H
#define SLUICE_ACL_H

// Which sources may send packets to VIPs: lists of prefixes that are allowed or denied, of which the longest decides. List 0
// is for all packets; a range of ports of a VIP can have a list of its own, which decides about what list 0 lets through.

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "header.h"
#include "transport.h"

struct acl_key {
	__u32 bits;          // of list and address that count
	__be32 list;         // twice its number, plus 1 for IPv6: ::/0 is none of IPv4's prefixes
	struct address addr; // IPv4 is the first word, so that a step in the trie compares eight bytes
};

// What an element says before and since a generation. All changes of a reload are written for the generation that is to
// come, and take effect together when that begins.
struct acl_value {
	__u32 since;
	__u32 before;
	__u32 after;
};

// acl has 1 for denied; acl_destinations the number of the list, or 0 for none. Both are shared by all interfaces, and
// written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct acl_key);
	__type(value, struct acl_value);
} acl SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct destination);
	__type(value, struct acl_value);
} acl_destinations SEC(".maps");

// Go writes it, as one word, once all of the generation is in the maps and has been seen by all CPUs; and writes no more
// until no program runs that began before. So a program that reads it once finds the whole generation, without a barrier.
volatile __u64 acl_generation SEC(".data.acl");

static __always_inline __u32 acl_at(const struct acl_value *v, __u32 generation)
{
	return v->since == generation + 1 ? v->before : v->after;
}

// acl_source makes a key of a source, but for the list.
static __always_inline void acl_source(const struct address *src, bool ipv4, struct acl_key *key)
{
	key->bits = ipv4 ? 64 : 160;
	if (ipv4)
		key->addr.word[0] = src->word[3];
	else
		key->addr = *src;
}

static __always_inline bool acl_denies(struct acl_key *key, __u32 list, bool ipv4, __u32 generation)
{
	key->list = bpf_htonl(list << 1 | !ipv4);
	struct acl_value *v = bpf_map_lookup_elem(&acl, key);

	return v && acl_at(v, generation);
}

// acl_refuses reports whether the source of a packet to a VIP, whose IP header is in the frame, is denied. lists says whether
// any VIP has a list.
static __always_inline bool acl_refuses(void *l3, void *end, bool ipv4, const struct address *src,
					const struct address *vip, bool lists)
{
	struct acl_key key = {};
	__u32 generation = acl_generation;

	acl_source(src, ipv4, &key);
	if (acl_denies(&key, 0, ipv4, generation))
		return true;
	if (!lists)
		return false;

	struct destination to = {.bits = DESTINATION_BITS, .vip = *vip};

	if (!transport(l3, end, ipv4, &to))
		return false;
	struct acl_value *v = bpf_map_lookup_elem(&acl_destinations, &to);
	__u32 list = v ? acl_at(v, generation) : 0;

	return list && acl_denies(&key, list, ipv4, generation);
}

#endif
