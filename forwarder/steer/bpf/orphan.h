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

#include "header.h"
#include "target.h"
#include "transport.h"

// Services by destination; shared by all interfaces, written by Go.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
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

// A packet that goes by the lookup table of its service.
struct orphan {
	__u64 generation;
	__u32 number; // of the service
	__u32 slot;   // the one that is found
	__u32 entries, slots;
	__u16 length; // of the IP packet, bytes
};

static __always_inline struct table_line *table_line(__u32 number, __u32 at)
{
	void *table = bpf_map_lookup_elem(&tables, &number);

	return table ? bpf_map_lookup_elem(table, &at) : NULL;
}

// try_backend reports whether packets can be sent to the backend with this index now, and notes its slot.
__noinline int try_backend(struct orphan *o, __u32 index)
{
	if (!o)
		return 0;
	struct table_line *l = table_line(o->number, 1 + (o->entries + TABLE_ENTRIES - 1) / TABLE_ENTRIES + index / TABLE_SLOTS);

	if (!l)
		return 0;
	o->slot = l->slot[index % TABLE_SLOTS];
	struct target *t = target_of(o->generation, o->slot);

	return t && t->service == o->number && t->exit != EXIT_NONE && o->length <= t->max_len && admit_of(o->slot) == ADMIT_UP;
}

// try_entry is try_backend for the backend of an entry.
__noinline int try_entry(struct orphan *o, __u32 entry)
{
	if (!o)
		return 0;
	struct table_line *l = table_line(o->number, 1 + entry / TABLE_ENTRIES);

	return l && try_backend(o, l->entry[entry % TABLE_ENTRIES]);
}

// by_table finds the slot for a packet by its flow's hash, and reports whether there is one.
static __always_inline bool by_table(struct orphan *o, __u64 hash)
{
	struct table_line *first = table_line(o->number, 0);

	if (!first || !first->size[0] || !first->size[1])
		return false;
	o->entries = first->size[0];
	o->slots = first->size[1];
	for (int i = 0; i < CANDIDATES; i++) {
		if (try_entry(o, (mix(hash, i) >> 32) * o->entries >> 32))
			return true;
	}
	__u32 start = (mix(hash, CANDIDATES) >> 32) * o->slots >> 32;

	for (__u32 i = 0; i < MOST_BACKENDS && i < o->slots; i++) {
		if (try_backend(o, start + i < o->slots ? start + i : start + i - o->slots))
			return true;
	}
	return false;
}

#endif
