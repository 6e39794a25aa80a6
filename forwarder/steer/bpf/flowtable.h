/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_FLOWTABLE_H
#define SLUICE_FLOWTABLE_H

// The flow table of package conntrack, from the very same memory: a word is found, aged and refreshed as Go does it, and never
// inserted or removed. See there what a word is; TestFastPathEqualsWorker in forwarder compares what becomes of words with Go.

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "header.h"

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

// word_at returns the word with this number in the table: those of the first line come first.
static __always_inline __u64 *word_at(__u64 number)
{
	__u32 key = number / LINE_WORDS;
	struct flow_line *line = bpf_map_lookup_elem(&flows, &key);

	return line ? &line->word[number % LINE_WORDS] : NULL;
}

// search_words is the long way to a word, of which most need none: it returns the number of the word of the flow with this hash, or -1 if
// there is none. A global function is verified by itself.
__noinline __u64 search_words(__u64 hash)
{
	__u64 fp = hash >> 32;
	__u32 key = hash & flow_mask;

	for (int i = 0; i < 2; i++) {
		struct flow_line *line = bpf_map_lookup_elem(&flows, &key);

		if (!line) // cannot be
			return -1;
		for (int k = 0; k <= LINE_WORDS; k++) {
			__u32 index = k ? k - 1 : fp % LINE_WORDS;
			__u64 word = READ_ONCE(line->word[index]);

			if (word >> 32 == fp && word)
				return (__u64)key * LINE_WORDS + index;
		}
		key ^= (fp * 0x9e3779b97f4a7c15ULL >> 32 | 1) & flow_mask;
	}
	return -1;
}

// find_word is conntrack.Table.Lookup: it finds the word of the flow with this hash, and returns where it is, with its number too; NULL if
// there is none.
static __always_inline __u64 *find_word(__u64 hash, __u64 *number, __u64 *word)
{
	__u64 fp = hash >> 32;

	// Most words are where their fingerprint prefers to be.
	*number = (hash & flow_mask) * LINE_WORDS + fp % LINE_WORDS;
	__u64 *at = word_at(*number);

	*word = at ? READ_ONCE(*at) : 0;
	if (*word && *word >> 32 == fp)
		return at;
	*number = search_words(hash);
	at = word_at(*number);
	*word = at ? READ_ONCE(*at) : 0;
	return *word && *word >> 32 == fp ? at : NULL;
}

// refresh_word is conntrack.Table.Refresh. If the word is another one by now somebody else has refreshed it, or the flow's word is gone:
// there is nothing to be done in either case.
static __always_inline void refresh_word(__u64 *at, __u64 word, __u32 tick, bool closing)
{
	enum word_state state = word_state(word);
	__u64 next = word & ~((__u64)WORD_TICK_MASK << WORD_TICK_SHIFT | WORD_STATE_MASK);
	__u32 then = word_tick(word);

	if (word_age(word, tick)) {
		then = tick;
		if (state == PROBATION)
			state = ESTABLISHED;
	}
	if (closing)
		state = CLOSING;
	next |= (__u64)then << WORD_TICK_SHIFT | state;
	if (next != word)
		__sync_val_compare_and_swap(at, word, next);
}

#endif
