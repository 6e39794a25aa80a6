// LOAD loads words 0, 1, 4 and 5 of the line whose first word has the index line, and the others, so that what SAME and EMPTY say comes
// out in the order of the words. AX is the first word of the table.
#define LOAD(line, first, second, wide1, wide2) \
	VMOVUPS (AX)(line*8), first                  \
	VINSERTF128 $1, 32(AX)(line*8), wide1, wide1 \
	VMOVUPS 16(AX)(line*8), second               \
	VINSERTF128 $1, 48(AX)(line*8), wide2, wide2

// EMPTY says of each word of a line whether it is zero.
#define EMPTY(wide1, wide2, zero, empty, scratch) \
	VPCMPEQQ zero, wide1, empty    \
	VPCMPEQQ zero, wide2, scratch  \
	VSHUFPS $0xdd, scratch, empty, empty

// SAME says of each word of a line whether its upper half is the fingerprint.
#define SAME(wide1, wide2, fingerprint, same) \
	VSHUFPS $0xdd, wide2, wide1, same \
	VPCMPEQD fingerprint, same, same
