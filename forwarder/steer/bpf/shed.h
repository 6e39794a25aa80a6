/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_SHED_H
#define SLUICE_SHED_H

// What is dropped while the workers cannot take all that comes: of the packets to a destination, by class, a share of the
// sources that have not proved their address. Sources that have are in a set that the workers write and the program reads, the
// words of guard.Proved.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "header.h"
#include "transport.h"

// Classes of packets.
enum {
	SHED_SYN,      // TCP with SYN and without ACK
	SHED_TCP,      // other TCP
	SHED_UDP,
	SHED_PORTLESS, // fragments without ports, ICMP
	SHED_CLASSES,
};

#define SHED_PLACES 64 // destinations that are counted apart

struct shed_value {
	__u16 share[SHED_CLASSES]; // of 256 sources
	__u32 place;               // in shed_counts
};

// Shared by all interfaces, written by Go. Packets without ports have a key of zeros, whatever VIP they are to.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct destination);
	__type(value, struct shed_value);
} shed SEC(".maps");

struct shed_count {
	__u64 packets[SHED_CLASSES];
};

// Shared by all interfaces.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SHED_PLACES);
	__type(key, __u32);
	__type(value, struct shed_count);
} shed_counts SEC(".maps");

// A line of guard.Proved.
struct proved_line {
	__u64 word[8];
};

// Shared by all interfaces and the workers; written by these. The loader puts theirs in its place.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct proved_line);
} proved SEC(".maps");

const volatile __u64 proved_key[4]; // guard.Proved.Shared
const volatile __u32 proved_mask;

// Units of time in the set: 2^26 ns. Here a source that is in it counts for an hour, longer than where a SYN needs a proof: users
// on connections that idle are to get through.
#define PROVED_SHIFT 26
#define PROVED_LIFE (3600ULL * 1000000000 >> PROVED_SHIFT)

// fold is the high half of a product, XOR the low one.
static __always_inline __u64 fold(__u64 a, __u64 b)
{
	__u64 low = (a & 0xffffffff) * (b & 0xffffffff);
	__u64 mid = (a >> 32) * (b & 0xffffffff) + (low >> 32);
	__u64 mid2 = (a & 0xffffffff) * (b >> 32) + (mid & 0xffffffff);

	return ((a >> 32) * (b >> 32) + (mid >> 32) + (mid2 >> 32)) ^ a * b;
}

// source_hash is guard.Proved.Hash.
static __always_inline __u64 source_hash(const struct address *src)
{
	__u64 hi = (__u64)bpf_ntohl(src->word[0]) << 32 | bpf_ntohl(src->word[1]);
	__u64 lo = (__u64)bpf_ntohl(src->word[2]) << 32 | bpf_ntohl(src->word[3]);

	return fold(fold(hi ^ proved_key[0], lo ^ proved_key[1]) ^ proved_key[2], proved_key[3]);
}

// is_proved is guard.Proved.Has, for a longer time.
static __always_inline bool is_proved(__u64 hash)
{
	__u32 at = hash & proved_mask, now = (bpf_ktime_get_coarse_ns() >> PROVED_SHIFT) + 1;
	struct proved_line *line = bpf_map_lookup_elem(&proved, &at);

	if (!line) // cannot be
		return false;
	for (int i = 0; i < 8; i++) {
		__u64 w = READ_ONCE(line->word[i]);

		if (w && w >> 32 == hash >> 32) {
			__s32 age = now - (__u32)w;

			return age < (__s32)PROVED_LIFE && age > -(__s32)PROVED_LIFE;
		}
	}
	return false;
}

// prove is guard.Proved.Add: it notes that a source has proved its address.
static __always_inline void prove(const struct address *src)
{
	__u64 hash = source_hash(src), old = 0;
	__u32 at = hash & proved_mask, now = (bpf_ktime_get_coarse_ns() >> PROVED_SHIFT) + 1, place = 0;
	struct proved_line *line = bpf_map_lookup_elem(&proved, &at);
	__s64 oldest = -(1LL << 62);

	if (!line) // cannot be
		return;
	// The source's own word, else the first that is free, else the oldest.
	for (int i = 0; i < 8; i++) {
		__u64 w = READ_ONCE(line->word[i]);
		__s64 age = w ? (__s32)(now - (__u32)w) : 1LL << 62;

		if (w && w >> 32 == hash >> 32)
			age = (1LL << 62) + 1;
		if (age > oldest) {
			oldest = age;
			place = i;
			old = w;
		}
	}
	// If somebody else was quicker, the source tells it again with its next packets.
	__sync_val_compare_and_swap(&line->word[place % 8], old, (hash & ~0xffffffffULL) | now);
}

// is_shed reports whether a packet to a VIP, whose IP header is in the frame, is to be dropped, and counts it.
static __always_inline bool is_shed(void *l3, void *end, bool ipv4, const struct address *src, const struct address *vip)
{
	struct destination to = {.bits = DESTINATION_BITS, .vip = *vip};
	__u32 class = SHED_UDP;
	struct tcphdr *tcp = transport(l3, end, ipv4, &to);

	if (!tcp) {
		__builtin_memset(&to.vip, 0, sizeof(to.vip));
		class = SHED_PORTLESS;
	} else if (to.proto == IPPROTO_TCP) {
		class = (void *)(tcp + 1) <= end && tcp->syn && !tcp->ack ? SHED_SYN : SHED_TCP;
	}
	struct shed_value *v = bpf_map_lookup_elem(&shed, &to);

	if (!v)
		return false;
	__u64 hash = source_hash(src);

	// Which sources are dropped changes every four seconds, so that none is kept out by its hash.
	__u8 lot = (hash >> 24) + (bpf_ktime_get_coarse_ns() >> 32) * 0x9d;

	if (lot >= v->share[class] || is_proved(hash))
		return false;
	__u32 place = v->place;
	struct shed_count *count = bpf_map_lookup_elem(&shed_counts, &place);

	if (count)
		count->packets[class]++;
	return true;
}

#endif
