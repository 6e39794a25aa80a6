/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_FLOWHASH_H
#define SLUICE_FLOWHASH_H

// The flow hash: SipHash-1-3 under the group's key, over the bytes, in network order, of source address, destination
// address, source port, destination port and protocol; 13 bytes for IPv4 and 37 for IPv6. It is the twin of
// packet.FlowHash in Go, and gives the same value bit for bit.
//
// Addresses and ports come as they lie in a packet, loaded without a byte swap. Little-endian targets only: SipHash
// takes little-endian words from its input.

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct flow_key {
	__u64 k0; // the first eight bytes of the SipHash key, as a little-endian number
	__u64 k1; // the last eight
};

struct sip_state {
	__u64 v0, v1, v2, v3;
};

#define SIP_ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

static __always_inline void sip_init(struct sip_state *s, const struct flow_key *key)
{
	s->v0 = key->k0 ^ 0x736f6d6570736575ULL;
	s->v1 = key->k1 ^ 0x646f72616e646f6dULL;
	s->v2 = key->k0 ^ 0x6c7967656e657261ULL;
	s->v3 = key->k1 ^ 0x7465646279746573ULL;
}

static __always_inline void sip_round(struct sip_state *s)
{
	s->v0 += s->v1;
	s->v1 = SIP_ROTATE(s->v1, 13) ^ s->v0;
	s->v0 = SIP_ROTATE(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = SIP_ROTATE(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = SIP_ROTATE(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = SIP_ROTATE(s->v1, 17) ^ s->v2;
	s->v2 = SIP_ROTATE(s->v2, 32);
}

static __always_inline void sip_word(struct sip_state *s, __u64 word)
{
	s->v3 ^= word;
	sip_round(s);
	s->v0 ^= word;
}

// sip_last takes what is left of the input: ports, protocol, and the input's length in the top byte.
static __always_inline __u64 sip_last(struct sip_state *s, __be16 sport, __be16 dport, __u8 proto, __u64 length)
{
	sip_word(s, (__u64)sport | (__u64)dport << 16 | (__u64)proto << 32 | length << 56);
	s->v2 ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

static __always_inline __u64 flow_hash_v4(const struct flow_key *key, __be32 src, __be32 dst, __be16 sport,
					  __be16 dport, __u8 proto)
{
	struct sip_state s;

	sip_init(&s, key);
	sip_word(&s, (__u64)src | (__u64)dst << 32);
	return sip_last(&s, sport, dport, proto, 13);
}

static __always_inline __u64 flow_hash_v6(const struct flow_key *key, const __be32 src[4], const __be32 dst[4],
					  __be16 sport, __be16 dport, __u8 proto)
{
	struct sip_state s;

	sip_init(&s, key);
	sip_word(&s, (__u64)src[0] | (__u64)src[1] << 32);
	sip_word(&s, (__u64)src[2] | (__u64)src[3] << 32);
	sip_word(&s, (__u64)dst[0] | (__u64)dst[1] << 32);
	sip_word(&s, (__u64)dst[2] | (__u64)dst[3] << 32);
	return sip_last(&s, sport, dport, proto, 37);
}

#endif
