/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_FLOWTABLE_H
#define SLUICE_FLOWTABLE_H

// The flow table of package conntrack, from the very same memory: a word is found, aged and refreshed as Go does it, and never
// inserted or removed. See there what a word is; TestFastPathEqualsWorker in forwarder compares what becomes of words with Go.

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum {
	WORD_SLOT_SHIFT = 14,
	WORD_TICK_SHIFT = 2,
	WORD_TICK_MASK = 0xfff,
	WORD_STATE_MASK = 3,
	WORD_CLOCK_SKEW = 64, // ticks that a word may be ahead of the clock
	WORD_TICK_BITS = 31,  // log2 of a tick's nanoseconds
	LINE_WORDS = 8,
};

enum word_state { EMPTY, PROBATION, ESTABLISHED, CLOSING };

struct flow_line {
	__u64 word[LINE_WORDS];
};

// Shared by all interfaces and the workers. The loader puts theirs in its place.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_line);
} flows SEC(".maps");

const volatile __u32 flow_mask; // number of lines - 1

static __always_inline __u32 word_slot(__u64 word)
{
	return (__u32)word >> WORD_SLOT_SHIFT;
}

static __always_inline __u32 word_tick(__u64 word)
{
	return word >> WORD_TICK_SHIFT & WORD_TICK_MASK;
}

static __always_inline enum word_state word_state(__u64 word)
{
	return word & WORD_STATE_MASK;
}

// tick_at is conntrack.Tick.
static __always_inline __u32 tick_at(__u64 now)
{
	return now >> WORD_TICK_BITS & WORD_TICK_MASK;
}

// word_age is conntrack.Age of a word.
static __always_inline __u32 word_age(__u64 word, __u32 tick)
{
	__u32 age = (tick - word_tick(word)) & WORD_TICK_MASK;

	return age > WORD_TICK_MASK - WORD_CLOCK_SKEW ? 0 : age;
}

// A place in the table.
struct word_place {
	__u32 line;
	__u32 index;
};

// word_at returns where a word is.
static __always_inline __u64 *word_at(const struct word_place *at)
{
	__u32 key = at->line;
	struct flow_line *line = bpf_map_lookup_elem(&flows, &key);

	return line ? &line->word[at->index % LINE_WORDS] : NULL;
}

// find_word is conntrack.Table.Lookup: it returns the word of the flow with this hash, and where it is; 0 if there is none.
static __always_inline __u64 find_word(__u64 hash, struct word_place *at)
{
	__u64 fp = hash >> 32;

	at->line = hash & flow_mask;
	for (int i = 0; i < 2; i++) {
		__u32 key = at->line;
		struct flow_line *line = bpf_map_lookup_elem(&flows, &key);
		__u64 word;

		if (!line) // cannot be
			return 0;
		// Most words are where their fingerprint prefers to be.
		at->index = fp % LINE_WORDS;
		word = *(volatile __u64 *)&line->word[at->index];
		if (word >> 32 == fp && word)
			return word;
		for (int k = 0; k < LINE_WORDS; k++) {
			word = *(volatile __u64 *)&line->word[k];
			if (word >> 32 == fp && word) {
				at->index = k;
				return word;
			}
		}
		at->line ^= (fp * 0x9e3779b97f4a7c15ULL >> 32 | 1) & flow_mask;
	}
	return 0;
}

// refresh_word is conntrack.Table.Refresh. If the word is another one by now somebody else has refreshed it, or the flow's word is gone:
// there is nothing to be done in either case.
static __always_inline void refresh_word(const struct word_place *at, __u64 word, __u32 tick, bool closing)
{
	enum word_state state = word_state(word);
	__u64 next = word & ~((__u64)WORD_TICK_MASK << WORD_TICK_SHIFT | WORD_STATE_MASK), *w = word_at(at);
	__u32 then = word_tick(word);

	if (word_age(word, tick)) {
		then = tick;
		if (state == PROBATION)
			state = ESTABLISHED;
	}
	if (closing)
		state = CLOSING;
	next |= (__u64)then << WORD_TICK_SHIFT | state;
	if (w && next != word)
		__sync_val_compare_and_swap(w, word, next);
}

#endif
