/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_TARGET_H
#define SLUICE_TARGET_H

// What the workers' snapshot says about targets and services, as far as the fast path repeats it. Go publishes it with each
// snapshot. There is room for two of them, and a packet goes by one: Go fills in the one that is not in force, names it in
// fastpath, and does not touch the other one before no program runs any more that may read it.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "header.h"

enum { EXIT_NONE = 0xff }; // of a target that the fast path sends nothing to

// A slot's target: forwarder's target, with packet.Encap. Numbers are in host order but for addresses. One cache line.
struct target {
	__u8 macs[12];     // of the Ethernet header: destination and source
	__u16 gue_port;    // UDP destination port of GUE; 0: no GUE
	__u8 overhead;     // bytes of the outer headers after Ethernet: 0, 20 or 40, with GUE 28 or 48
	__u8 source_bits;  // how many low bits of the outer source are the flow's
	__u32 addrs[8];    // source and destination of the outer IP header, two words or eight
	__u16 tag;         // 802.1Q, of frames there; 0: none
	__u16 life[3];     // in ticks, by word_state, from PROBATION on
	__u16 service;
	__u16 max_len;     // bytes: the longest IP packet, as received, that fits the egress MTU
	__u16 sum;         // of an outer IPv4 header, its big-endian words without what the packet adds, summed up and folded
	__u8 exit;         // index in exits
	__u8 zero;
};

struct port_range {
	__u16 first; // host order
	__u16 last;
};

enum { SERVICE_RANGES = 10 };

enum service_flags {
	SERVICE_TCP = 1,
	SERVICE_KEEPS = 2,   // a backend that is down keeps its flows (on_down: keep)
	SERVICE_SETTLES = 4, // the workers look at every packet of a flow whose word is not established
};

// A service that the fast path forwards for. One cache line.
struct service {
	struct address vip;
	__u8 proto;
	__u8 ranges; // how many of ports; 0: none, and no packet is the service's
	__u8 flags;
	__u8 source_bits; // how many leading bits of the client's address choose the backend; 0: the flow's hash does
	__u8 zero[4];
	struct port_range ports[SERVICE_RANGES];
};

// By slot, and by service number; the second half from slots or services on. Shared by all interfaces, written by Go, which sets
// their sizes.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct target);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct service);
} services SEC(".maps");

const volatile __u32 fast_slots;    // half of the elements of targets
const volatile __u32 fast_services; // half of those of services

struct fast_state {
	__u64 generation;      // of the snapshot in force, the second half if odd; 0: there is none, and no fast path
	__u64 unsettled_until; // until when packets of flows whose word is not established tell the workers something, ns
	__u64 disturbed;       // there is a flood or an overload: sources prove nothing by their connections
	__u64 alive_until;     // until when there is a daemon whose workers work, unless it says so again; ns
	__u64 orphan_time;     // for how long after that it goes on without one, ns
	__u64 orphan_action;   // what becomes of packets to VIPs that cannot be forwarded then, and of all of them afterwards: XDP_PASS or XDP_DROP
	__u64 zero[2];
};

// Shared by all interfaces, written by Go, each word by itself.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fast_state);
} fastpath SEC(".maps");

static __always_inline struct fast_state *fast_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&fastpath, &zero);
}

// What a slot takes now: maglev.Admit, sixteen a line. The loader puts the engine's words in its place.
struct admit_line {
	__u32 word[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct admit_line);
} admits SEC(".maps");

enum admit_state { ADMIT_DOWN, ADMIT_DRAINING, ADMIT_UP, ADMIT_CUT };

// admit_of returns the state of a slot.
static __always_inline enum admit_state admit_of(__u32 slot)
{
	__u32 at = slot / 16;
	struct admit_line *line = bpf_map_lookup_elem(&admits, &at);

	return line ? READ_ONCE(line->word[slot % 16]) & 3 : ADMIT_DOWN;
}

// target_of and service_of return what a generation says of a slot and of a service; NULL if there is no room for it.
static __always_inline struct target *target_of(__u64 generation, __u32 slot)
{
	__u32 at = (generation & 1 ? fast_slots : 0) + slot;

	return slot < fast_slots ? bpf_map_lookup_elem(&targets, &at) : NULL;
}

static __always_inline struct service *service_of(__u64 generation, __u32 number)
{
	__u32 at = (generation & 1 ? fast_services : 0) + number;

	return number < fast_services ? bpf_map_lookup_elem(&services, &at) : NULL;
}

// What was forwarded to a slot.
struct slot_count {
	__u64 packets;
	__u64 bytes; // of IP, as received
};

enum { COUNT_SLOTS = 4 };

struct count_line {
	struct slot_count slot[COUNT_SLOTS];
};

// By CPU and slot, fast_slots for each CPU: no per-CPU array, since Go could not map that. Shared by all interfaces.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count_line);
} slot_counts SEC(".maps");

// count_of returns this CPU's count of a slot.
static __always_inline struct slot_count *count_of(__u32 slot)
{
	__u32 at = (bpf_get_smp_processor_id() * fast_slots + slot) / COUNT_SLOTS;
	struct count_line *line = bpf_map_lookup_elem(&slot_counts, &at);

	return line ? &line->slot[slot % COUNT_SLOTS] : NULL;
}

// Sources of some of the packets, of which Go takes a look several times a second. What does not fit is left out. Shared by all interfaces.
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16); // bytes; a page at least, which has so many on some machines
} samples SEC(".maps");

enum { SAMPLE_BITS = 10 }; // one packet of 2^10

// is_sample picks packets by their numbers, in no regular order, which what is sent could have too: multiples of the golden ratio lie evenly.
static __always_inline bool is_sample(__u64 number)
{
	return (__u32)number * 0x9e3779b1 < 1U << (32 - SAMPLE_BITS);
}

// Where packets leave, by the number of the interface in the node's list; shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, __u32);
} exits SEC(".maps");

#endif
