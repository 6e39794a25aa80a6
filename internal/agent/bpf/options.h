// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// A walk over the options of a TCP header, in a loop of the kernel's (bpf_loop): the verifier looks at its body once.

#pragma once

#include "common.h"

#define TCPOPT_END 0
#define TCPOPT_NOP 1
#define TCPOPT_MSS 2
#define TCPOLEN_MSS 4
#define TCPOPT_TIMESTAMP 8
#define TCPOLEN_TIMESTAMP 10

// Offsets are from the beginning of the frame.
struct options {
	struct __sk_buff *skb;
	__u32 at;    // the option to look at next
	__u32 end;   // of the options
	__u32 found; // where the option is that is looked for, once it is found; 0: not found
	__u8 kind;   // of that option
	__u8 length; // of that option
};

// step looks at one option; 1 ends the walk. What is cut short or has a length that no option can have ends it too.
static long step(__u32 index, struct options *o)
{
	__u8 option[2]; // kind, length

	if (o->at >= o->end || bpf_skb_load_bytes(o->skb, o->at, option, 1) || option[0] == TCPOPT_END)
		return 1;
	if (option[0] == TCPOPT_NOP) {
		o->at++;
		return 0;
	}
	if (o->at + 2 > o->end || bpf_skb_load_bytes(o->skb, o->at, option, 2))
		return 1;
	if (option[1] < 2 || o->at + option[1] > o->end)
		return 1;
	if (option[0] == o->kind && option[1] == o->length) {
		o->found = o->at;
		return 1;
	}
	o->at += option[1];
	return 0;
}

// find_option is where the option of this kind and length is in the TCP header at tcp_at, of so many 32-bit words, which are at
// least 5; 0 if there is none. The caller has the
// walk among its own variables: of a function's that is inlined the compiler uses the stack again, where the verifier, with an
// agent that lacks CAP_PERFMON, sees a pointer being overwritten.
static __always_inline __u32 find_option(struct options *o, struct __sk_buff *skb, __u32 tcp_at, __u32 words,
					 __u8 kind, __u8 length)
{
	o->skb = skb;
	o->at = tcp_at + sizeof(struct tcphdr);
	o->end = tcp_at + words * 4;
	o->found = 0;
	o->kind = kind;
	o->length = length;
	bpf_loop(40, step, o, 0); // there are at most 40 bytes of options
	return o->found;
}
