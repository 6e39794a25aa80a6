/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
#ifndef SLUICE_COOKIE_H
#define SLUICE_COOKIE_H

// SYN cookies, the twin of guard.Cookies in Go, with the same numbers bit for bit. A cookie has, from the top: 3 bits of
// index into a table of segment sizes, 2 of epoch, and 27 of SipHash-2-4 over the bytes, in network order, of source
// address, destination address, source port, destination port, the client's initial sequence number, epoch, index and
// options byte; 22 bytes for IPv4 and 46 for IPv6.
//
// Addresses and ports come as they lie in a packet, loaded without a byte swap; the other numbers are in host order.
// Little-endian targets only: SipHash takes little-endian words from its input. There are no loops, and one cookie costs
// some 350 instructions for IPv4 and 500 for IPv6.

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

// The options byte of a client that offers no timestamps: no window scale, no SACK, no ECN. Otherwise it is the lowest six
// bits of the timestamp that the client returns.
#define COOKIE_OPTIONS_NONE 0x0f
#define COOKIE_OPTIONS_MASK 0x3f

// The parts of the options byte.
#define COOKIE_WSCALE 0x0f // the client's window scale; 15: it offers none
#define COOKIE_SACK 0x10
#define COOKIE_ECN 0x20

#define COOKIE_MAC_MASK 0x07ffffff

// The secret as it lies in memory, each word a little-endian number.
struct cookie_secret {
	__u64 ipv4[2];
	__u64 ipv6[2];
};

struct cookie_hash {
	__u64 v0, v1, v2, v3;
};

#define COOKIE_ROTATE(x, n) ((x) << (n) | (x) >> (64 - (n)))

static __always_inline void cookie_init(struct cookie_hash *h, const __u64 key[2])
{
	__u64 k0 = key[0], k1 = key[1];

	h->v0 = k0 ^ 0x736f6d6570736575ULL;
	h->v1 = k1 ^ 0x646f72616e646f6dULL;
	h->v2 = k0 ^ 0x6c7967656e657261ULL;
	h->v3 = k1 ^ 0x7465646279746573ULL;
}

static __always_inline void cookie_round(struct cookie_hash *h)
{
	h->v0 += h->v1;
	h->v1 = COOKIE_ROTATE(h->v1, 13) ^ h->v0;
	h->v0 = COOKIE_ROTATE(h->v0, 32);
	h->v2 += h->v3;
	h->v3 = COOKIE_ROTATE(h->v3, 16) ^ h->v2;
	h->v0 += h->v3;
	h->v3 = COOKIE_ROTATE(h->v3, 21) ^ h->v0;
	h->v2 += h->v1;
	h->v1 = COOKIE_ROTATE(h->v1, 17) ^ h->v2;
	h->v2 = COOKIE_ROTATE(h->v2, 32);
}

static __always_inline void cookie_word(struct cookie_hash *h, __u64 word)
{
	h->v3 ^= word;
	cookie_round(h);
	cookie_round(h);
	h->v0 ^= word;
}

// cookie_end takes what is left of the input and its length, and puts the cookie together.
static __always_inline __u32 cookie_end(struct cookie_hash *h, __be16 sport, __be16 dport, __u32 isn, __u32 epoch,
					__u8 index, __u8 options, __u64 length)
{
	cookie_word(h, (__u64)sport | (__u64)dport << 16 | (__u64)__builtin_bswap32(isn) << 32);
	cookie_word(h, (__u64)__builtin_bswap32(epoch) | (__u64)index << 32 | (__u64)options << 40 | length << 56);
	h->v2 ^= 0xff;
	cookie_round(h);
	cookie_round(h);
	cookie_round(h);
	cookie_round(h);
	return (__u32)index << 29 | (epoch & 3) << 27 |
	       ((__u32)(h->v0 ^ h->v1 ^ h->v2 ^ h->v3) & COOKIE_MAC_MASK);
}

// cookie_number_v4 is the cookie that answers a SYN with the sequence number isn; index is at most 7.
static __always_inline __u32 cookie_number_v4(const struct cookie_secret *secret, __be32 src, __be32 dst, __be16 sport,
					      __be16 dport, __u32 isn, __u32 epoch, __u8 index, __u8 options)
{
	struct cookie_hash h;

	cookie_init(&h, secret->ipv4);
	cookie_word(&h, (__u64)src | (__u64)dst << 32);
	return cookie_end(&h, sport, dport, isn, epoch, index, options, 22);
}

static __always_inline __u32 cookie_number_v6(const struct cookie_secret *secret, const __be32 src[4], const __be32 dst[4],
					      __be16 sport, __be16 dport, __u32 isn, __u32 epoch, __u8 index,
					      __u8 options)
{
	struct cookie_hash h;

	cookie_init(&h, secret->ipv6);
	cookie_word(&h, (__u64)src[0] | (__u64)src[1] << 32);
	cookie_word(&h, (__u64)src[2] | (__u64)src[3] << 32);
	cookie_word(&h, (__u64)dst[0] | (__u64)dst[1] << 32);
	cookie_word(&h, (__u64)dst[2] | (__u64)dst[3] << 32);
	return cookie_end(&h, sport, dport, isn, epoch, index, options, 46);
}

// cookie_ahead is by how much the epoch of a cookie is after the one before now: 0, 1 or 2; 3: it is too old or too new.
static __always_inline __u32 cookie_ahead(__u32 number, __u32 now)
{
	return ((number >> 27) - (now - 1)) & 3;
}

// cookie_mss is the segment size that a cookie tells, in bytes.
static __always_inline __u16 cookie_mss(__u32 number)
{
	static const __u16 table[8] = {536, 1220, 1300, 1400, 1440, 1452, 1460, 8940};

	return table[number >> 29];
}

// cookie_check_v4 returns the segment size that the client takes, in bytes, or 0 if number is no cookie. number is one less
// than what a segment acknowledges, isn one less than its sequence number; now is the current epoch.
static __always_inline __u16 cookie_check_v4(const struct cookie_secret *secret, __u32 number, __be32 src, __be32 dst,
					     __be16 sport, __be16 dport, __u32 isn, __u32 now, __u8 options)
{
	__u32 ahead = cookie_ahead(number, now);

	if (ahead > 2 || cookie_number_v4(secret, src, dst, sport, dport, isn, now - 1 + ahead, number >> 29, options) != number)
		return 0;
	return cookie_mss(number);
}

static __always_inline __u16 cookie_check_v6(const struct cookie_secret *secret, __u32 number, const __be32 src[4],
					     const __be32 dst[4], __be16 sport, __be16 dport, __u32 isn, __u32 now,
					     __u8 options)
{
	__u32 ahead = cookie_ahead(number, now);

	if (ahead > 2 || cookie_number_v6(secret, src, dst, sport, dport, isn, now - 1 + ahead, number >> 29, options) != number)
		return 0;
	return cookie_mss(number);
}

#endif
