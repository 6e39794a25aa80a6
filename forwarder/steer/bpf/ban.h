/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_BAN_H
#define SLUICE_BAN_H

// Sources of which packets to VIPs are dropped for a while.

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "header.h"

// What of a source's address counts.
struct ban_masks {
	__u32 ipv4; // both in network order
	struct address ipv6;
};

// Masked source → when its ban ends, in ns of CLOCK_MONOTONIC. Shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct address);
	__type(value, __u64);
} bans SEC(".maps");

// is_banned reports whether a source, read as from a packet, is banned.
static __always_inline bool is_banned(const struct address *src, bool ipv4, const struct ban_masks *masks)
{
	struct address key = *src;

	if (ipv4) {
		key.word[3] &= masks->ipv4;
	} else {
		for (int i = 0; i < 4; i++)
			key.word[i] &= masks->ipv6.word[i];
	}
	__u64 *until = bpf_map_lookup_elem(&bans, &key);

	// The coarse clock is the same one, up to a tick late (10 ms at most), for a tenth of the price.
	return until && bpf_ktime_get_coarse_ns() < *until;
}

#endif
