// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// Makes and checks cookies inside the kernel, for the test that compares cookie.h with Go. No part of the product.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../cookie.h"

#define ANSWERS 65536

struct answer {
	__be32 src[4]; // IPv4: the first word
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	__u32 isn;
	__u32 epoch;
	__u32 number; // to be checked
	__u8 index;
	__u8 options;
	__u8 v6;
	__u8 unused;
	__u32 made; // the cookie of what is above but for the number
	__u32 mss;  // what the number tells
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ANSWERS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

struct cookie_secret secret;

static long answer_one(__u32 i, void *unused)
{
	struct answer *a = bpf_map_lookup_elem(&answers, &i);

	if (!a)
		return 1;
	if (a->v6) {
		a->made = cookie_number_v6(&secret, a->src, a->dst, a->sport, a->dport, a->isn, a->epoch, a->index, a->options);
		a->mss = cookie_check_v6(&secret, a->number, a->src, a->dst, a->sport, a->dport, a->isn, a->epoch, a->options);
	} else {
		a->made = cookie_number_v4(&secret, a->src[0], a->dst[0], a->sport, a->dport, a->isn, a->epoch, a->index,
					   a->options);
		a->mss = cookie_check_v4(&secret, a->number, a->src[0], a->dst[0], a->sport, a->dport, a->isn, a->epoch,
					 a->options);
	}
	return 0;
}

SEC("syscall")
int answer_all(void *ctx)
{
	return bpf_loop(ANSWERS, answer_one, 0, 0);
}

char _license[] SEC("license") = "GPL";
