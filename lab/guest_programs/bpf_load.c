/*
 * Loads BPF programs of several kinds into a guest's kernel and stays until it is killed:
 *
 *     bpf_load [BTF-ID-OF-VFS_OPEN CGROUP2 [writer]]
 *     bpf_load NUMBER...
 *
 * a socket filter that calls a subprogram, a helper and a map (hash table); a tail call; a program on
 * XDP of the loopback device (which makes a dispatcher); a classic socket filter. With arguments, one at the
 * entry of vfs_open, by its BTF id, that follows a pointer (which makes a trampoline and an exception table);
 * programs of a raw tracepoint, of a trace event, of perf events of a processor and of itself, of a control
 * group; where the kernel has that, of traffic control and of netfilter. With `writer`, one that may write to the
 * memory of processes, attached to nothing. Freestanding, so that it is small enough for a serial console.
 * With eleven numbers, programs replace operations of the kernel (see below) in place of all this.
 * Writes one line for each kind; those with a question mark need not be known to the kernel.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

struct insn { u8 code; u8 regs; short off; int imm; };
#define I(code, dst, src, off, imm) { (code), (u8)((dst) | ((src) << 4)), (off), (imm) }
#define MOV_IMM(dst, imm) I(0xb7, dst, 0, 0, imm)
#define MOV_REG(dst, src) I(0xbf, dst, src, 0, 0)
#define ADD_IMM(dst, imm) I(0x07, dst, 0, 0, imm)
#define LOAD(dst, src, off) I(0x79, dst, src, off, 0)
#define STORE_IMM(dst, off, imm) I(0x62, dst, 0, off, imm)
#define CALL(id) I(0x85, 0, 0, 0, id)
#define CALL_LOCAL(distance) I(0x85, 0, 1, 0, distance)
#define MAP(dst, fd) I(0x18, dst, 1, 0, fd), I(0, 0, 0, 0, 0)
#define EXIT I(0x95, 0, 0, 0, 0)

static long syscall6(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}
#define SYS(n, a, b, c) syscall6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)

static void say(const char *what, long result)
{
	char line[64];
	int n = 0, digits = 0;
	char number[20];
	while (*what) line[n++] = *what++;
	line[n++] = ' ';
	if (result < 0) { line[n++] = '-'; result = -result; }
	do { number[digits++] = '0' + result % 10; result /= 10; } while (result);
	while (digits) line[n++] = number[--digits];
	line[n++] = '\n';
	SYS(1, 1, line, n);
}

static u8 attr[128];
static void clear(void) { for (unsigned i = 0; i < sizeof(attr); i++) ((volatile u8 *)attr)[i] = 0; }
#define AT(type, offset) (*(type *)(attr + (offset)))

static long map(u32 type, u32 value)
{
	clear();
	AT(u32, 0) = type; AT(u32, 4) = 4; AT(u32, 8) = value; AT(u32, 12) = 4;
	return SYS(321, 0, attr, sizeof(attr));
}

static long load(u32 type, const char *name, const struct insn *code, u32 count, u32 attach, u32 id)
{
	clear();
	AT(u32, 0) = type; AT(u32, 4) = count; AT(u64, 8) = (u64)code; AT(u64, 16) = (u64)"GPL";
	AT(u32, 68) = attach; AT(u32, 108) = id;
	for (int i = 0; i < 15 && name[i]; i++) attr[48 + i] = (u8)name[i];
	return SYS(321, 5, attr, sizeof(attr));
}
#define LOAD_PROGRAM(type, name, code, attach, id) load(type, name, code, sizeof(code) / sizeof(*code), attach, id)

static long link(long program, u32 target, u32 attach)
{
	clear();
	AT(u32, 0) = (u32)program; AT(u32, 4) = target; AT(u32, 8) = attach;
	return program < 0 ? program : SYS(321, 28, attr, sizeof(attr));
}

static long open_tracepoint(const char *name, long program)
{
	clear();
	AT(u64, 0) = (u64)name; AT(u32, 8) = (u32)program;
	return program < 0 ? program : SYS(321, 17, attr, sizeof(attr));
}

/* struct perf_event_attr, PERF_ATTR_SIZE_VER5; all tasks of the first processor, or this task on all. */
static long perf(u32 type, u64 config, int own, long program)
{
	clear();
	AT(u32, 0) = type; AT(u32, 4) = 112; AT(u64, 8) = config; AT(u64, 16) = 1;
	if (program < 0) return program;
	long event = syscall6(298, (long)attr, own ? 0 : -1, own ? -1 : 0, -1, 0, 0);
	long result = event < 0 ? event : SYS(16, event, 0x40042408, program); /* PERF_EVENT_IOC_SET_BPF */
	return result < 0 ? result : event;
}

static u64 number_in(const char *path)
{
	char text[16];
	u64 number = 0;
	long file = SYS(2, path, 0, 0), size = SYS(0, file, text, sizeof(text));
	for (long i = 0; i < size && text[i] >= '0' && text[i] <= '9'; i++) number = 10 * number + (u64)(text[i] - '0');
	return number;
}

static void programs(void)
{
	long hash = map(1, 8), array = map(3, 4);
	struct insn filter[] = {
		STORE_IMM(10, -4, 1), MOV_REG(2, 10), ADD_IMM(2, -4), MAP(1, (int)hash), CALL(1),
		CALL(7), MOV_IMM(1, 1), CALL_LOCAL(1), EXIT,
		MOV_REG(0, 1), CALL(5), MOV_IMM(0, 0), EXIT,
	};
	struct insn chained[] = { MAP(2, (int)array), MOV_IMM(3, 0), CALL(12), MOV_IMM(0, 0), EXIT };
	struct insn pass[] = { MOV_IMM(0, 2), EXIT };
	say("filter", LOAD_PROGRAM(1, "lab_filter", filter, 0, 0));
	long first = LOAD_PROGRAM(1, "lab_chained", chained, 0, 0);
	say("chained", first);
	clear();
	u32 key = 0, program = (u32)first;
	AT(u32, 0) = (u32)array; AT(u64, 8) = (u64)&key; AT(u64, 16) = (u64)&program;
	say("tail call", SYS(321, 2, attr, sizeof(attr)));
	say("xdp", link(LOAD_PROGRAM(6, "lab_xdp", pass, 37, 0), 1, 37));
}

static void attached(u32 id, const char *cgroup)
{
	struct insn entered[] = { LOAD(1, 1, 0), LOAD(2, 1, 0), MOV_IMM(0, 0), EXIT };
	struct insn zero[] = { MOV_IMM(0, 0), EXIT };
	struct insn one[] = { MOV_IMM(0, 1), EXIT };
	struct insn next[] = { MOV_IMM(0, -1), EXIT };
	long traced = LOAD_PROGRAM(26, "lab_traced", entered, 24, id);
	say("traced", open_tracepoint(0, traced));
	SYS(3, traced, 0, 0); /* its link holds it */
	say("raw tracepoint", open_tracepoint("module_load", LOAD_PROGRAM(17, "lab_raw", zero, 0, 0)));
	u64 event = number_in("/sys/kernel/tracing/events/module/module_load/id");
	say("trace event", perf(2, event, 0, LOAD_PROGRAM(5, "lab_event", zero, 0, 0)));
	say("perf event", perf(1, 9, 0, LOAD_PROGRAM(7, "lab_perf", zero, 0, 0))); /* PERF_COUNT_SW_DUMMY */
	say("task event", perf(1, 9, 1, LOAD_PROGRAM(7, "lab_task", zero, 0, 0)));
	say("cgroup", link(LOAD_PROGRAM(8, "lab_cgroup", one, 1, 0), (u32)SYS(2, cgroup, 0, 0), 1));
	say("tcx?", link(LOAD_PROGRAM(3, "lab_tcx", next, 46, 0), 1, 46));
	long filter = LOAD_PROGRAM(32, "lab_netfilter", one, 45, 0);
	clear();
	AT(u32, 0) = (u32)filter; AT(u32, 8) = 45;
	AT(u32, 16) = 2; AT(u32, 20) = 1; AT(u32, 24) = 10; /* IPv4, NF_INET_LOCAL_IN */
	say("netfilter?", filter < 0 ? filter : SYS(321, 28, attr, sizeof(attr)));
}

static void writer(void)
{
	struct insn code[] = {
		STORE_IMM(10, -8, 0), MOV_IMM(1, 0), MOV_REG(2, 10), ADD_IMM(2, -8), MOV_IMM(3, 8), CALL(36),
		MOV_IMM(0, 0), EXIT,
	};
	say("writer", LOAD_PROGRAM(17, "lab_writer", code, 0, 0));
}

static void classic(void)
{
	static struct { u16 code; u8 jt, jf; u32 k; } code[] = {
		{ 0x28, 0, 0, 12 }, { 0x15, 0, 3, 0x800 }, { 0x02, 0, 0, 3 }, { 0x60, 0, 0, 3 }, { 0x6, 0, 0, 64 }, { 0x6, 0, 0, 0 },
	};
	struct { u16 count; void *code; } program = { sizeof(code) / sizeof(*code), code };
	long socket = SYS(41, 2, 2, 0);
	say("classic", syscall6(54, socket, 1, 26, (long)&program, sizeof(program), 0));
}

static u32 told(u64 word)
{
	u32 number = 0;
	for (const char *c = (const char *)word; *c; c++) number = 10 * number + (u32)(*c - '0');
	return number;
}

/*
 * Replace operations of the kernel, a way to control congestion that nobody uses, until a file appears. They are told
 * by numbers of this kernel: of the type of the map's value, its size, of the type of operations, where these
 * and their name are, and where each is, with its number among the members.
 */
static void operations(u64 *numbers)
{
	static u32 types[] = { 0x1eb9f, 24, 0, 16, 16, 3, 1, 1 << 24, 4, 32, 0x6100 }; /* int a */
	static u8 value[8192];
	static const char *names[] = { "lab_first", "lab_second", "lab_third" };
	struct insn two[] = { MOV_IMM(0, 2), EXIT };
	u32 data = told(numbers[3]), key = 0;
	clear();
	AT(u64, 0) = (u64)types; AT(u32, 16) = 43;
	long known = SYS(321, 18, attr, sizeof(attr));
	clear();
	AT(u32, 0) = 26; AT(u32, 4) = 4; AT(u32, 8) = told(numbers[1]); AT(u32, 12) = 1;
	AT(u32, 48) = (u32)known; AT(u32, 60) = told(numbers[0]);
	long map = SYS(321, 0, attr, sizeof(attr));
	say("map", map);
	for (int i = 0; i < 3; i++) {
		long program = LOAD_PROGRAM(27, names[i], two, told(numbers[6 + 2 * i]), told(numbers[2]));
		say(names[i], program);
		*(u64 *)(value + data + told(numbers[5 + 2 * i])) = (u64)program;
	}
	for (int i = 0; i < 6; i++) value[data + told(numbers[4]) + i] = (u8)"lab_cc"[i];
	clear();
	AT(u32, 0) = (u32)map; AT(u64, 8) = (u64)&key; AT(u64, 16) = (u64)value;
	say("operations", SYS(321, 2, attr, sizeof(attr)));
	say("loaded", 0);
	u64 pause[] = { 0, 100000000 };
	while (SYS(21, "/tmp/bpf_load.end", 0, 0) < 0) SYS(35, pause, 0, 0);
	clear();
	AT(u32, 0) = (u32)map; AT(u64, 8) = (u64)&key;
	SYS(321, 3, attr, sizeof(attr));
	SYS(60, 0, 0, 0);
}

__attribute__((used)) static void begin(u64 *stack)
{
	if (stack[0] > 11) operations(stack + 2);
	programs();
	if (stack[0] > 2) {
		attached(told(stack[2]), (const char *)stack[3]);
	}
	if (stack[0] > 3) writer();
	classic();
	say("loaded", 0);
	for (;;) SYS(34, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\nhlt");
