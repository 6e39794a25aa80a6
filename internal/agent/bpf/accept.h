// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
//
// SYN cookies. While a node defends a VIP it answers SYNs itself, and the backend sees of a connection only what comes after
// the handshake. For that the ingress program looks at every TCP packet to a VIP, once it is decapsulated, if the agent was
// told the secret of the nodes' cookies. So it does with a packet to an address and port of the host's own that connections to
// a VIP are sent to by NAT: a node has rewritten the destination, but made the cookie with the VIP and its port, and these take
// the place of the packet's where the cookie is checked. Then:
//
//   a connection of the host's, or nobody listens        → the kernel, untouched
//   a listener, and the client returns a valid cookie    → the kernel, with the connection made (bpf_sk_assign_tcp_reqsk)
//   a listener, and no valid cookie                      → the kernel, untouched: it answers with a reset
//   the end of an older connection, and a valid cookie   → the packet becomes a reset that ends it
//
// The client's first segment may carry data, and may be the second that it sent, if the one without data was lost: both
// acknowledge the cookie and have the number after the client's first.
//
// The end of an older connection (TIME_WAIT) is found where a client uses a port again soon. With a SYN the kernel would end
// it by itself; from the segment after it does not, and the connection would hang. A reset with the expected number ends it,
// and the client's next segment, which has the cookie too, makes the connection. A client that waits for the server to speak
// first sends none until it gives up.

#pragma once

#include "common.h"
#include "cookie.h"
#include "options.h"

#define TCP_STATE_TIME_WAIT 6 // TCP_TIME_WAIT and TCP_LISTEN of the kernel's include/net/tcp_states.h
#define TCP_STATE_LISTEN 10

#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define NODE_WSCALE 7        // the window scale that nodes offer
#define COOKIE_EPOCH_SHIFT 5 // an epoch has 32 seconds
#define ENOMEM 12
#define EINVAL 22

// From newer kernel headers than the build needs (include/net/tcp.h of Linux 6.9).
struct bpf_tcp_req_attrs {
	__u32 rcv_tsval;
	__u32 rcv_tsecr;
	__u16 mss;
	__u8 rcv_wscale;
	__u8 snd_wscale;
	__u8 ecn_ok;
	__u8 wscale_ok;
	__u8 sack_ok;
	__u8 tstamp_ok;
	__u8 usec_ts_ok;
	__u8 reserved[3];
};

struct sock {
	int unused; // the verifier wants a type that is complete
};

// Of the kernel's structs, what is read here; the loader finds out where it is.
struct sock_common {
	__u32 skc_tw_rcv_nxt;
} __attribute__((preserve_access_index));

struct inet_timewait_sock {
	struct sock_common __tw_common;
} __attribute__((preserve_access_index));

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
} __attribute__((preserve_access_index));

// Missing before Linux 6.9: the loader says so if it is needed, and else loads without it.
extern int bpf_sk_assign_tcp_reqsk(struct __sk_buff *skb, struct sock *sk, struct bpf_tcp_req_attrs *attrs, int attrs__sz) __ksym
	__weak;

// Set by the loader; 0: the verifier removes what depends on it. Its section is its own, since clang 14 describes no other
// variable in a .rodata beside the constants that it makes itself.
const volatile __u8 accept_cookies SEC(".rodata.agent") = 0;
const volatile __u8 accept_nat SEC(".rodata.agent") = 0; // nats has elements

// What cookies are checked with. Programs cannot read the time of day; the difference between two clocks, unlike the time
// itself, stays right for as long as an agent is killed.
struct cookie_settings {
	struct cookie_secret secret;
	__s64 clock; // CLOCK_REALTIME less CLOCK_BOOTTIME, in ns
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cookie_settings);
} cookies SEC(".maps");

// An address and a TCP port, as they lie in a packet.
struct endpoint {
	struct address address;
	__be16 port;
	__u16 zero; // keys are compared as a whole
};

// Written by Go: what the destination was before a node rewrote it, by what it is now. Both are of one family.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct endpoint);
	__type(value, struct endpoint);
} nats SEC(".maps");

// A segment that may carry a cookie. The stack that this shares with the decapsulator has 512 bytes, so it is no larger than it
// has to be, and filled in piece by piece.
struct segment {
	struct bpf_sock_tuple tuple;
	struct bpf_tcp_req_attrs attrs; // filled in by check_cookie
	__u32 tcp_at;                   // where its TCP header is in the frame
	bool ipv6;
	struct {
		__be32 seq;
		__be32 ack;
		__u8 offset; // in its upper half the length of the header in 32-bit words
		__u8 flags;
	} tcp; // as it is in the header, after the ports
	struct endpoint *nat; // in nats; NULL: it is to a VIP
	union {
		struct endpoint to;     // at first
		struct options options; // later
	};
};

// check_cookie says whether a segment has a valid cookie, and fills in the attributes of its connection.
static __always_inline bool check_cookie(struct __sk_buff *skb, struct segment *s)
{
	__u32 zero = 0, number = bpf_ntohl(s->tcp.ack) - 1, isn = bpf_ntohl(s->tcp.seq) - 1;
	__u32 timestamps = find_option(&s->options, skb, s->tcp_at, s->tcp.offset >> 4, TCPOPT_TIMESTAMP, TCPOLEN_TIMESTAMP);
	__u8 options = COOKIE_OPTIONS_NONE;
	__be32 stamps[2];

	if (timestamps) {
		if (bpf_skb_load_bytes(skb, timestamps + 2, stamps, sizeof(stamps)))
			return false; // cannot be: the option was there
		s->attrs.rcv_tsval = bpf_ntohl(stamps[0]);
		s->attrs.rcv_tsecr = bpf_ntohl(stamps[1]);
		s->attrs.tstamp_ok = 1;
		options = s->attrs.rcv_tsecr & COOKIE_OPTIONS_MASK;
	}

	struct cookie_settings *now = bpf_map_lookup_elem(&cookies, &zero);
	if (!now) // cannot be: the array has an element 0
		return false;
	__u64 seconds = (bpf_ktime_get_boot_ns() + now->clock) / 1000000000;
	__u32 epoch = seconds >> COOKIE_EPOCH_SHIFT;

	if (s->ipv6)
		s->attrs.mss = cookie_check_v6(&now->secret, number, s->tuple.ipv6.saddr, s->tuple.ipv6.daddr,
					       s->tuple.ipv6.sport, s->tuple.ipv6.dport, isn, epoch, options);
	else
		s->attrs.mss = cookie_check_v4(&now->secret, number, s->tuple.ipv4.saddr, s->tuple.ipv4.daddr,
					       s->tuple.ipv4.sport, s->tuple.ipv4.dport, isn, epoch, options);
	if (!s->attrs.mss)
		return false;
	s->attrs.sack_ok = (options & COOKIE_SACK) != 0;
	s->attrs.ecn_ok = (options & COOKIE_ECN) != 0;
	if ((options & COOKIE_WSCALE) != COOKIE_WSCALE) {
		s->attrs.wscale_ok = 1;
		s->attrs.snd_wscale = options & COOKIE_WSCALE;
		s->attrs.rcv_wscale = NODE_WSCALE;
	}
	return true;
}

// end_time_wait makes of a segment the reset that ends the older connection, which expects `expected` next.
static __always_inline void end_time_wait(struct __sk_buff *skb, struct segment *s, __be32 expected)
{
	__u32 checksum_at = s->tcp_at + offsetof(struct tcphdr, check);
	// The word with the header's length and the flags, as it lies in the packet.
	__u16 before = s->tcp.offset | s->tcp.flags << 8, after = s->tcp.offset | TCP_RST << 8;

	if (bpf_skb_store_bytes(skb, s->tcp_at + offsetof(struct tcphdr, seq), &expected, sizeof(expected), 0) ||
	    bpf_skb_store_bytes(skb, s->tcp_at + offsetof(struct tcphdr, ack_seq) + 4, &after, sizeof(after), 0))
		return; // no memory for a copy of a shared packet
	// These cannot fail: the header was made writable above.
	bpf_l4_csum_replace(skb, checksum_at, s->tcp.seq, expected, sizeof(expected));
	bpf_l4_csum_replace(skb, checksum_at, before, after, sizeof(after));
}

// read_segment reads a packet's headers; false if it is nothing that may carry a cookie.
static __always_inline bool read_segment(struct __sk_buff *skb, struct segment *s)
{
	void *ports;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u8 start[10]; // of the header, up to the protocol

		if (bpf_skb_load_bytes(skb, ETH_HLEN, start, sizeof(start)) || start[9] != IPPROTO_TCP || start[0] >> 4 != 4 ||
		    (start[0] & 15) < 5 || (start[6] << 8 | start[7]) & IP_MF_OR_OFFSET ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, saddr), &s->tuple.ipv4.saddr, 2 * sizeof(__be32)))
			return false;
		s->tcp_at = ETH_HLEN + (start[0] & 15) * 4;
		s->to.address = mapped(s->tuple.ipv4.daddr);
		ports = &s->tuple.ipv4.sport;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		__u8 start[7]; // of the header, up to the next header's type; nodes know a TCP packet only without others between

		if (bpf_skb_load_bytes(skb, ETH_HLEN, start, sizeof(start)) || start[6] != IPPROTO_TCP || start[0] >> 4 != 6 ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), s->tuple.ipv6.saddr, 2 * sizeof(struct in6_addr)))
			return false;
		s->ipv6 = true;
		s->tcp_at = ETH_HLEN + sizeof(struct ipv6hdr);
		__builtin_memcpy(&s->to.address, s->tuple.ipv6.daddr, sizeof(s->to.address));
		ports = &s->tuple.ipv6.sport;
	} else {
		return false;
	}
	if (bpf_skb_load_bytes(skb, s->tcp_at, ports, 2 * sizeof(__be16)) ||
	    bpf_skb_load_bytes(skb, s->tcp_at + offsetof(struct tcphdr, seq), &s->tcp, 10) || s->tcp.offset >> 4 < 5 ||
	    (s->tcp.flags & (TCP_ACK | TCP_SYN | TCP_RST)) != TCP_ACK)
		return false;
	if (bpf_map_lookup_elem(&vips, &s->to.address))
		return true;
	if (!accept_nat)
		return false;
	s->to.port = s->ipv6 ? s->tuple.ipv6.dport : s->tuple.ipv4.dport;
	s->nat = bpf_map_lookup_elem(&nats, &s->to);
	return s->nat != NULL;
}

// undo_nat makes the destination in the tuple what the client sent to.
static __always_inline void undo_nat(struct segment *s)
{
	if (s->ipv6) {
		__builtin_memcpy(s->tuple.ipv6.daddr, &s->nat->address, sizeof(s->nat->address));
		s->tuple.ipv6.dport = s->nat->port;
	} else {
		s->tuple.ipv4.daddr = s->nat->address.word[3];
		s->tuple.ipv4.dport = s->nat->port;
	}
}

// accept_cookie does what the beginning of this file says with a packet that the kernel is to have. It is a function of its
// own for the verifier, which looks at it once.
__noinline int accept_cookie(struct __sk_buff *skb)
{
	struct segment s = {};
	__u32 zero = 0;

	if (!accept_cookies || !bpf_sk_assign_tcp_reqsk || !read_segment(skb, &s))
		return 0;

	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &s.tuple, s.ipv6 ? sizeof(s.tuple.ipv6) : sizeof(s.tuple.ipv4),
						 BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	// Nearly all packets leave here: their connection is made.
	if (sk->state != TCP_STATE_LISTEN && sk->state != TCP_STATE_TIME_WAIT) {
		bpf_sk_release(sk);
		return 0;
	}

	if (s.nat)
		undo_nat(&s); // the host's sockets, which were looked up above, know nothing of the VIP
	bool valid = check_cookie(skb, &s), time_wait = false;
	__be32 expected = 0;
	int err = 0;

	if (valid && sk->state == TCP_STATE_LISTEN) {
		struct sock *listener = (struct sock *)bpf_skc_to_tcp_sock(sk);

		err = listener ? bpf_sk_assign_tcp_reqsk(skb, listener, &s.attrs, sizeof(s.attrs)) : -EINVAL;
	} else if (sk->state == TCP_STATE_TIME_WAIT) {
		struct tcp_timewait_sock *old = bpf_skc_to_tcp_timewait_sock(sk);

		time_wait = true;
		if (old)
			expected = bpf_htonl(old->tw_sk.__tw_common.skc_tw_rcv_nxt);
	}
	bpf_sk_release(sk);
	if (time_wait) {
		if (!valid)
			return 0; // the older connection's own packet
		end_time_wait(skb, &s, expected);
	}

	struct counters *count = bpf_map_lookup_elem(&counts, &zero);
	if (!count) // cannot be: the array has an element 0
		return 0;
	if (!valid)
		count->cookie_bad++;
	else if (time_wait)
		count->cookie_time_wait++;
	else if (!err)
		count->cookie_accepted++;
	else if (err == -EINVAL)
		count->cookie_refused++;
	else if (err == -ENOMEM)
		count->cookie_no_memory++;
	else
		count->cookie_failed++;
	return 0;
}
