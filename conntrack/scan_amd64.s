//go:build !race

#include "textflag.h"

// The bits of words 0, 1, 4, 5, 2, 3, 6, 7 in the order of the words: of those of two words each, the middle pairs change places.
#define INORDER(bits, scratch) \
	MOVL bits, scratch      \
	ANDL $0xc3, scratch     \
	MOVL bits, DX           \
	SHRL $2, DX             \
	ANDL $0x0c, DX          \
	ORL  DX, scratch        \
	SHLL $2, bits           \
	ANDL $0x30, bits        \
	ORL  scratch, bits

// func scanAVX2(line *[lineWords]uint64, fp uint64) (same, empty uint8)
TEXT ·scanAVX2(SB), NOSPLIT, $0-18
	MOVQ line+0(FP), AX
	MOVQ fp+8(FP), CX
	VMOVUPS (AX), Y1
	VMOVUPS 32(AX), Y2
	VPXOR Y3, Y3, Y3
	VPCMPEQQ Y3, Y1, Y4                // empty words, 0 to 3
	VPCMPEQQ Y3, Y2, Y5                // and 4 to 7
	VMOVMSKPD Y4, R8
	VMOVMSKPD Y5, R9
	SHLL $4, R9
	ORL  R9, R8
	VMOVD CX, X0
	VPBROADCASTD X0, Y0
	VSHUFPS $0xdd, Y2, Y1, Y1          // upper halves of words 0, 1, 4, 5, 2, 3, 6, 7
	VPCMPEQD Y0, Y1, Y1
	VMOVMSKPS Y1, R10
	VZEROUPPER
	INORDER(R10, R11)
	MOVL R8, R9
	NOTL R9
	ANDL R9, R10                       // an empty word has no fingerprint
	MOVB R10, same+16(FP)
	MOVB R8, empty+17(FP)
	RET
