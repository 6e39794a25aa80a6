#include "textflag.h"

// Four SipHash states at once: v0 to v3 in Y0 to Y3, a flow in each quadword. Y6 and Y8 are scratch, Y7 is rotate16.
#define SIPROUND \
	VPADDQ  Y1, Y0, Y0       \
	VPADDQ  Y3, Y2, Y2       \
	VPSLLQ  $13, Y1, Y6      \
	VPSRLQ  $51, Y1, Y1      \
	VPSHUFB Y7, Y3, Y3       \
	VPOR    Y6, Y1, Y1       \
	VPXOR   Y2, Y3, Y3       \
	VPXOR   Y0, Y1, Y1       \
	VPSHUFD $0xb1, Y0, Y0    \
	VPADDQ  Y3, Y0, Y0       \
	VPADDQ  Y1, Y2, Y2       \
	VPSLLQ  $21, Y3, Y8      \
	VPSRLQ  $43, Y3, Y3      \
	VPSLLQ  $17, Y1, Y6      \
	VPSRLQ  $47, Y1, Y1      \
	VPOR    Y8, Y3, Y3       \
	VPOR    Y6, Y1, Y1       \
	VPXOR   Y0, Y3, Y3       \
	VPXOR   Y2, Y1, Y1       \
	VPSHUFD $0xb1, Y2, Y2

// Rotates each quadword to the left by 16 bits.
DATA rotate16<>+0(SB)/8, $0x0504030201000706
DATA rotate16<>+8(SB)/8, $0x0d0c0b0a09080f0e
DATA rotate16<>+16(SB)/8, $0x0504030201000706
DATA rotate16<>+24(SB)/8, $0x0d0c0b0a09080f0e
GLOBL rotate16<>(SB), RODATA|NOPTR, $32

// func hash4AVX2(state *[4]uint64, addrs, last, hashes *[scratchSize]uint64, n int)
TEXT ·hash4AVX2(SB), NOSPLIT, $0-40
	MOVQ state+0(FP), AX
	MOVQ addrs+8(FP), SI
	MOVQ last+16(FP), DX
	MOVQ hashes+24(FP), DI
	MOVQ n+32(FP), CX
	VPBROADCASTQ 0(AX), Y12
	VPBROADCASTQ 8(AX), Y13
	VPBROADCASTQ 16(AX), Y14
	VPBROADCASTQ 24(AX), Y15
	VMOVDQU rotate16<>(SB), Y7
	VPCMPEQQ Y11, Y11, Y11
	VPSRLQ $56, Y11, Y11 // 0xff, which marks the finalisation
	MOVQ $(13<<56), R8
	VMOVQ R8, X10
	VPBROADCASTQ X10, Y10 // the length of the message
	JMP  check

loop:
	VMOVDQU (SI), Y4
	VPOR    (DX), Y10, Y5
	VMOVDQA Y12, Y0
	VMOVDQA Y13, Y1
	VMOVDQA Y14, Y2
	VPXOR   Y4, Y15, Y3
	SIPROUND
	VPXOR   Y4, Y0, Y0
	VPXOR   Y5, Y3, Y3
	SIPROUND
	VPXOR   Y5, Y0, Y0
	VPXOR   Y11, Y2, Y2
	SIPROUND
	SIPROUND
	SIPROUND
	VPXOR   Y1, Y0, Y0
	VPXOR   Y3, Y2, Y2
	VPXOR   Y2, Y0, Y0
	VMOVDQU Y0, (DI)
	ADDQ    $32, SI
	ADDQ    $32, DX
	ADDQ    $32, DI
	SUBQ    $4, CX

check:
	TESTQ CX, CX
	JG    loop
	VZEROUPPER
	RET

// Takes one word of the message, in Y4, into the four states.
#define COMPRESSY4 \
	VPXOR   Y4, Y3, Y3       \
	SIPROUND                 \
	VPXOR   Y4, Y0, Y0

// Takes one word of the message, at offset, into the four states.
#define COMPRESS(offset) \
	VMOVDQU offset(SI), Y4   \
	COMPRESSY4

// func hash6AVX2(state *[4]uint64, words *[5][scratchSize]uint64, hashes *[scratchSize]uint64, n int)
TEXT ·hash6AVX2(SB), NOSPLIT, $0-32
	MOVQ state+0(FP), AX
	MOVQ words+8(FP), SI
	MOVQ hashes+16(FP), DI
	MOVQ n+24(FP), CX
	VPBROADCASTQ 0(AX), Y12
	VPBROADCASTQ 8(AX), Y13
	VPBROADCASTQ 16(AX), Y14
	VPBROADCASTQ 24(AX), Y15
	VMOVDQU rotate16<>(SB), Y7
	VPCMPEQQ Y11, Y11, Y11
	VPSRLQ $56, Y11, Y11 // 0xff, which marks the finalisation
	MOVQ $(37<<56), R8
	VMOVQ R8, X10
	VPBROADCASTQ X10, Y10 // the length of the message
	JMP  check

loop:
	VMOVDQA Y12, Y0
	VMOVDQA Y13, Y1
	VMOVDQA Y14, Y2
	VMOVDQA Y15, Y3
	COMPRESS(0)
	COMPRESS(512)
	COMPRESS(1024)
	COMPRESS(1536)
	VPOR    2048(SI), Y10, Y4
	COMPRESSY4
	VPXOR   Y11, Y2, Y2
	SIPROUND
	SIPROUND
	SIPROUND
	VPXOR   Y1, Y0, Y0
	VPXOR   Y3, Y2, Y2
	VPXOR   Y2, Y0, Y0
	VMOVDQU Y0, (DI)
	ADDQ    $32, SI
	ADDQ    $32, DI
	SUBQ    $4, CX

check:
	TESTQ CX, CX
	JG    loop
	VZEROUPPER
	RET
