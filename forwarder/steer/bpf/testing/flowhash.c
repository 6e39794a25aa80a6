// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// Hashes an array of tuples inside the kernel, for the test that compares flowhash.h with Go. No part of the product.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../flowhash.h"

#define TUPLES 65536

struct tuple {
	__be32 src[4]; // IPv4: the first word
	__be32 dst[4];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 v6;
	__u16 unused;
	__u64 hash; // the answer
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TUPLES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct tuple);
} tuples SEC(".maps");

struct flow_key key;

static long hash_one(__u32 index, void *unused)
{
	struct tuple *t = bpf_map_lookup_elem(&tuples, &index);

	if (!t)
		return 1;
	if (t->v6)
		t->hash = flow_hash_v6(&key, t->src, t->dst, t->sport, t->dport, t->proto);
	else
		t->hash = flow_hash_v4(&key, t->src[0], t->dst[0], t->sport, t->dport, t->proto);
	return 0;
}

SEC("syscall")
int hash_all(void *ctx)
{
	return bpf_loop(TUPLES, hash_one, 0, 0);
}

char _license[] SEC("license") = "GPL";
