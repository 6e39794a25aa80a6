/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_ORPHAN_H
#define SLUICE_ORPHAN_H

// What goes on while no daemon runs: flows that have a word go where it says, and all others by the lookup tables of their services and
// the admit words as the daemon left them. Nothing is inserted and nothing is limited. Of the choices of package maglev it is the one for
// packets without a word, but that only a backend that is up is taken: since a SYN leaves no word here, the packets after it must find
// the same one.

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "fastpath.h"
#include "header.h"
#include "plain.h"
#include "target.h"
#include "transport.h"

// Services by destination; shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 20);
	__type(key, struct destination);
	__type(value, __u32); // number
} served SEC(".maps");

// A lookup table in lines: sizes; entries, which are indices of backends; the backends' slots.
enum { TABLE_ENTRIES = 32, TABLE_SLOTS = 16 };

struct table_line {
	union {
		__u32 size[2]; // how many entries, and how many slots
		__u16 entry[TABLE_ENTRIES];
		__u32 slot[TABLE_SLOTS];
	};
};

struct table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32)); // not by types: of maps in maps clang describes none
	__uint(value_size, sizeof(struct table_line));
};

// By service number; shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1); // set by the loader
	__type(key, __u32);
	__array(values, struct table);
} tables SEC(".maps");

const volatile __u64 mix_key;

enum {
	CANDIDATES = 8,     // entries that are tried
	MOST_BACKENDS = 64, // and then backends in their order
};

// mix is maglev.Mix.
static __always_inline __u64 mix(__u64 hash, __u64 i)
{
	__u64 x = (hash ^ mix_key) + i * 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

// A packet while no daemon runs. It holds no pointers, since functions that are verified by themselves know of none that come from
// elsewhere; there are several of these, for otherwise there would not be stack enough.
struct orphan {
	struct plain is;
	__u64 generation; // of the snapshot that it goes by
	__u64 word;       // of its flow; 0: the lookup table says where it goes
	__u64 place;      // of the word
	__u32 slot;       // where it goes
	__u32 number;     // of the service
};

static __always_inline struct table_line *table_line(__u32 number, __u32 at)
{
	void *table = bpf_map_lookup_elem(&tables, &number);

	return table ? bpf_map_lookup_elem(table, &at) : NULL;
}

// try_backend reports whether packets can be sent to a backend now, and notes its slot, which has this place in the service's table.
__noinline int try_backend(struct orphan *o, __u32 place)
{
	struct table_line *l = o ? table_line(o->number, place / TABLE_SLOTS) : NULL;

	if (!l)
		return 0;
	o->slot = l->slot[place % TABLE_SLOTS];
	struct target *t = target_of(o->generation, o->slot);

	return t && t->service == o->number && t->exit != EXIT_NONE && o->is.length <= t->max_len && admit_of(o->slot) == ADMIT_UP;
}

// by_table finds the slot for a packet by its flow's hash, and reports whether there is one.
static __always_inline int by_table(struct orphan *o, __u64 hash)
{
	struct table_line *first = table_line(o->number, 0);

	if (!first || !first->size[0] || !first->size[1])
		return 0;
	__u32 entries = first->size[0], slots = first->size[1];
	__u32 backends = (1 + (entries + TABLE_ENTRIES - 1) / TABLE_ENTRIES) * TABLE_SLOTS; // the place of the first slot

	for (int i = 0; i < CANDIDATES; i++) {
		__u32 entry = (mix(hash, i) >> 32) * entries >> 32;
		struct table_line *l = table_line(o->number, 1 + entry / TABLE_ENTRIES);

		if (l && try_backend(o, backends + l->entry[entry % TABLE_ENTRIES]))
			return 1;
	}
	__u32 start = (mix(hash, CANDIDATES) >> 32) * slots >> 32;

	for (__u32 i = 0; i < MOST_BACKENDS && i < slots; i++) {
		if (try_backend(o, backends + (start + i < slots ? start + i : start + i - slots)))
			return 1;
	}
	return 0;
}

// client_hash is Worker.sourceHash: a flow hash without ports, of that many leading bits of the source.
__noinline __u64 client_hash(struct xdp_md *ctx, __u32 shape, __u8 bits, __u8 proto)
{
	void *end = (void *)(long)ctx->data_end, *l3 = (void *)(long)ctx->data + l3_offset(shape);
	struct flow_key key = {flow_key.k0, flow_key.k1};
	__be32 masks[4], src[4];

	for (int i = 0; i < 4; i++)
		masks[i] = bits <= 32 * i ? 0 : bits >= 32 * i + 32 ? ~0U : bpf_htonl(~0U << ((32 * i + 32 - bits) & 31));
	if (shape & FRAME_IPV6) {
		struct ipv6hdr *ip6 = l3;

		if ((void *)(ip6 + 1) > end) // cannot be
			return 0;
		for (int i = 0; i < 4; i++)
			src[i] = ip6->saddr.in6_u.u6_addr32[i] & masks[i];
		return flow_hash_v6(&key, src, ip6->daddr.in6_u.u6_addr32, 0, 0, proto);
	}
	struct iphdr *ip = l3;

	if ((void *)(ip + 1) > end) // cannot be
		return 0;
	return flow_hash_v4(&key, ip->saddr & masks[0], ip->daddr, 0, 0, proto);
}

// choose_orphan finds where a packet goes while no daemon runs, and reports whether there is such a place: its flow's word says so, or the
// lookup table of its service does.
__noinline int choose_orphan(struct xdp_md *ctx, __u32 shape, struct orphan *o)
{
	struct fast_state *state = fast_state();

	if (!o || !state)
		return 0;
	struct fast_packet p = {.is = &o->is, .state = state, .generation = o->generation, .now = fast_now(), .orphan = true};

	if (fast_find(&p)) {
		o->slot = p.slot;
		o->word = p.word;
		o->place = p.place;
		return 1;
	}
	struct destination to = {.bits = DESTINATION_BITS, .vip = o->is.dst, .proto = o->is.proto, .port = bpf_htons(o->is.port)};
	__u32 *number = bpf_map_lookup_elem(&served, &to);
	struct service *s = number ? service_of(o->generation, *number) : NULL;

	if (!s || !serves(s, &o->is.dst, o->is.proto, o->is.port))
		return 0;
	o->number = *number;
	return by_table(o, s->source_bits ? client_hash(ctx, shape, s->source_bits, o->is.proto) : o->is.hash);
}

// forward_orphan forwards a packet while no daemon runs. It returns what fast_forward does, and XDP_PASS too if the packet is not one that can
// be forwarded without, or none has run for too long.
__noinline int forward_orphan(struct xdp_md *ctx, __u32 shape)
{
	struct fast_state *state = fast_state();
	struct orphan o = {};

	if (!state) // cannot be
		return XDP_PASS;
	__u64 now = fast_now(), alive_until = READ_ONCE(state->alive_until);

	o.generation = READ_ONCE(state->generation);
	if (!o.generation || (now >= alive_until && now - alive_until >= READ_ONCE(state->orphan_time)) ||
	    !parse_apart(ctx, shape, &o.is) || !choose_orphan(ctx, shape, &o))
		return XDP_PASS;
	struct fast_packet p = {
		.is = &o.is, .state = state, .word = o.word, .at = word_at(o.place), .target = target_of(o.generation, o.slot),
		.slot = o.slot, .tick = tick_at(now), .orphan = true,
	};

	return p.at && p.target ? fast_forward(ctx, shape, &p) : XDP_PASS;
}

#endif
