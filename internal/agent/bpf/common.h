// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// What the agent's programs share: the maps that Go fills and reads, and addresses as their keys have them.

#pragma once

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// From newer kernel headers than the build needs (include/uapi/linux/bpf.h of Linux 6.6).
#define TCX_NEXT -1
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

#define IP_MF_OR_OFFSET 0x3fff // of iphdr.frag_off: more fragments, or not the first
#define IP_OFFSET 0x1fff       // of iphdr.frag_off: not the first

// A 128-bit address in network order; IPv4 as v4-mapped, ::ffff:a.b.c.d.
struct address {
	__u32 word[4];
};

// A prefix of such addresses, as an LPM trie has it.
struct prefix {
	__u32 bits;
	struct address address;
};

// What may change while the programs run; all in host order, 0: off.
struct parameters {
	__u16 gue_port; // UDP destination port of GUE packets
	__u16 mss_ipv4; // the largest MSS that leaves in a SYN-ACK over IPv4, in bytes
	__u16 mss_ipv6; // the same over IPv6
};

// What one CPU counted, in packets as they were on the wire: a packet that GRO merged from n counts n. At ingress,
// packets that are neither IP-in-IP nor GUE to this host are not counted at all.
struct counters {
	__u64 decapsulated_ipv4; // inner IPv4 packets given to the kernel
	__u64 decapsulated_ipv6; // inner IPv6 packets given to the kernel
	__u64 not_vip;           // the inner destination is not a VIP: untouched
	__u64 fragment;          // a fragment of an outer packet: untouched
	__u64 malformed;         // a header is cut short or wrong: untouched
	__u64 merged;            // several GUE packets that the interface made one: untouched
	__u64 source;            // to a VIP, from a source that is not allowed: dropped
	__u64 ecn;               // congestion marked outside, the inner packet cannot carry the mark: dropped
	__u64 failed;            // the kernel refused to take the header off: dropped
	__u64 clamped;           // SYN-ACKs sent from a VIP whose MSS was lowered
	__u64 cookie_accepted;   // connections made of a valid cookie
	__u64 cookie_bad;        // segments without a valid cookie to a listener on a VIP, or by NAT: untouched
	__u64 cookie_time_wait;  // valid cookies that met the end of an older connection: made the reset that ends it
	__u64 cookie_refused;    // valid cookies that the kernel can make no connection of (EINVAL): untouched
	__u64 cookie_no_memory;  // valid cookies that the kernel had no memory for (ENOMEM): untouched
	__u64 cookie_failed;     // valid cookies that met another error: untouched
};

// Written by Go, read here.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct address);
	__type(value, __u8); // unused
} vips SEC(".maps");

// The outer destinations that are this host's.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, __u8); // unused
} addresses SEC(".maps");

// The outer sources that are allowed.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1); // set by the loader
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u8); // unused
} sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct parameters);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

static __always_inline struct address mapped(__be32 v4)
{
	struct address a = {.word = {0, 0, bpf_htonl(0xffff), v4}};

	return a;
}

static __always_inline struct address native(const struct in6_addr *v6)
{
	struct address a = {.word = {v6->in6_u.u6_addr32[0], v6->in6_u.u6_addr32[1], v6->in6_u.u6_addr32[2],
				     v6->in6_u.u6_addr32[3]}};

	return a;
}
