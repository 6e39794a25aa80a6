# shellcheck shell=sh
# What the scripts for the kernel's pktgen have in common; they read this file. POSIX sh, so that busybox can run it too.
#
# pktgen is a thread for each CPU, which sends what its files below /proc/net/pktgen say, UDP only. The scripts give each CPU
# that they use one transmit queue of the interface. Nothing is sent without an interface, a destination MAC and a VIP, and
# never without an end: each thread has a number of packets, and a time limit stops all of them.

pktgen=/proc/net/pktgen

# What the script does, in a sentence or two, and the size of frames that it begins with; empty: it has sizes of its own.
about='' size=''
# What the options set.
interface='' mac='' vip='' port=80 first_source='' sources='' flows=1000 cpus=0 rate=0 seconds=10 count=0 vlan='' burst=1
# What prepare makes of them.
devices='' source_ports=0 interrupted=''

usage() {
	cat <<USAGE
usage: $(basename "$0") -i INTERFACE -m MAC -d VIP [options]
$about
  -i INTERFACE    where packets leave
  -m MAC          where they go: the balancer's interface, or the router before it
  -d VIP          destination address, IPv4 or IPv6
  -p PORT         destination port [80]
  -s ADDRESS      first source address [198.18.0.1, or 2001:2::1]
  -S COUNT        source addresses from there on [256, or as many as flows; IPv6: always 1, pktgen can do no more]
  -f COUNT        flows: each source has so many ports that it comes to this [1000]
  -c FIRST-LAST   CPUs to send from, one transmit queue each [0]
  -r PPS          packets per second, all CPUs together [as fast as it goes]
  -t SECONDS      time limit, 1 to 3600 [10]
  -n COUNT        packets, all CPUs together [what the time allows]
  -b COUNT        packets of the same flow in a row, handed to the driver at once; -n is kept to within as many [1]
  -v ID           802.1Q tag [none]
USAGE
	[ -z "$size" ] || echo "  -z BYTES        size of a frame, with its checksum [$size]"
}

fail() {
	echo "$(basename "$0"): $*" >&2
	exit 1
}

refuse() {
	echo "$(basename "$0"): $*" >&2
	usage >&2
	exit 2
}

# number NAME VALUE LEAST MOST: refuses what is no number between the two.
number() {
	case $2 in
	'' | *[!0-9]* | ????????????????*) refuse "$1: found \"$2\", expected a number from $3 to $4" ;;
	esac
	if [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
		refuse "$1: found $2, expected $3 to $4"
	fi
}

# ipv4 NAME ADDRESS: prints the address as a number.
ipv4() {
	echo "$2" | awk -F. -v name="$1" '
		function bad() { print name ": found \"" $0 "\", expected an IPv4 address" | "cat >&2"; exit 1 }
		NF != 4 { bad() }
		{ for (i = 1; i <= 4; i++) { if ($i !~ /^[0-9]+$/ || $i > 255) bad(); n = n * 256 + $i }; printf "%.0f\n", n }'
}

# dotted NUMBER: the reverse of ipv4.
dotted() {
	echo "$(($1 >> 24 & 255)).$(($1 >> 16 & 255)).$(($1 >> 8 & 255)).$(($1 & 255))"
}

options() {
	while getopts i:m:d:p:s:S:f:c:r:t:n:b:v:z:h option; do
		case $option in
		i) interface=$OPTARG ;;
		m) mac=$OPTARG ;;
		d) vip=$OPTARG ;;
		p) port=$OPTARG ;;
		s) first_source=$OPTARG ;;
		S) sources=$OPTARG ;;
		f) flows=$OPTARG ;;
		c) cpus=$OPTARG ;;
		r) rate=$OPTARG ;;
		t) seconds=$OPTARG ;;
		n) count=$OPTARG ;;
		b) burst=$OPTARG ;;
		v) vlan=$OPTARG ;;
		z)
			[ -n "$size" ] || refuse '-z: this script has sizes of its own'
			size=$OPTARG
			;;
		h) usage && exit 0 ;;
		*) usage >&2 && exit 2 ;;
		esac
	done
	shift $((OPTIND - 1))
	[ $# -eq 0 ] || refuse "found \"$1\" behind the options"
	[ -n "$interface" ] || refuse '-i: name the interface that packets leave by'
	[ -n "$mac" ] || refuse '-m: give the destination MAC'
	[ -n "$vip" ] || refuse '-d: give the VIP'
	echo "$mac" | grep -Eqi '^([0-9a-f]{2}:){5}[0-9a-f]{2}$' || refuse "-m: found \"$mac\", expected a MAC such as 02:00:00:00:00:01"
	case $mac in
	?[13579bBdDfF]:*) refuse "-m: $mac is a group address: the flood would reach every host of the link" ;;
	esac
	number -p "$port" 1 65535
	number -f "$flows" 1 100000000
	number -r "$rate" 0 1000000000
	number -t "$seconds" 1 3600
	number -n "$count" 0 1000000000000
	number -b "$burst" 1 64
	[ -z "$size" ] || number -z "$size" 64 9022
	[ -z "$vlan" ] || number -v "$vlan" 1 4094
	number -c "${cpus%-*}" 0 1023
	number -c "${cpus#*-}" "${cpus%-*}" 1023
	case $vip in
	*:*) sources=1 first_source=${first_source:-2001:2::1} ;;
	*)
		vip_number=$(ipv4 -d "$vip") || exit 2
		case $((vip_number >> 24)) in
		0 | 127 | 22[4-9] | 2[3-5][0-9]) refuse "-d: $vip is no unicast address" ;;
		esac
		first_source=${first_source:-198.18.0.1}
		source_number=$(ipv4 -s "$first_source") || exit 2
		if [ -z "$sources" ]; then
			sources=$((flows < 256 ? flows : 256))
		fi
		number -S "$sources" 1 16777216
		;;
	esac
	source_ports=$(((flows + sources - 1) / sources))
	[ "$source_ports" -le 60000 ] || refuse "$flows flows of $sources sources are more than 60000 ports for each: raise -S (IPv6: lower -f)"
	flows=$((sources * source_ports))
}

# set_file FILE COMMAND: pktgen takes one command a write; its file says OK or what was wrong.
set_file() {
	echo "$2" >"$1" 2>/dev/null || fail "$1 does not take \"$2\": $(grep Result "$1")"
}

# release takes back what prepare has set up.
release() {
	for d in $devices; do
		echo rem_device_all >"$pktgen/kpktgend_${d#*@}" 2>/dev/null || true
	done
}

# prepare sets a device up for each CPU. Its arguments are further commands for each.
prepare() {
	[ "$(id -u)" = 0 ] || fail 'needs root'
	[ -d $pktgen ] || modprobe -q pktgen 2>/dev/null || true
	[ -e $pktgen/pgctrl ] || fail "no $pktgen: the kernel needs its module pktgen (CONFIG_NET_PKTGEN; modprobe pktgen)"
	[ -d "/sys/class/net/$interface" ] || fail "there is no interface $interface"
	queues=$(find "/sys/class/net/$interface/queues/" -name 'tx-*' | wc -l)
	threads=$((${cpus#*-} - ${cpus%-*} + 1))
	[ "$threads" -le "$queues" ] || fail "$threads CPUs, but $interface has $queues transmit queues: ethtool -L $interface combined $threads"
	most=$count
	# Without a count, as many as no CPU can send in the time: if this script is killed outright, the kernel ends all the same.
	[ "$most" -gt 0 ] || most=$((seconds * (rate > 0 ? rate : threads * 20000000)))
	most=$(((most + threads - 1) / threads))

	trap release EXIT
	trap 'interrupted=1' INT TERM HUP
	cpu=${cpus%-*}
	while [ "$cpu" -le "${cpus#*-}" ]; do
		thread=$pktgen/kpktgend_$cpu
		[ -e "$thread" ] || fail "-c: there is no CPU $cpu"
		grep -Eq '^(Running|Stopped): *[^ ]' "$thread" && fail "pktgen is in use on CPU $cpu: $(grep -E '^(Running|Stopped): *[^ ]' "$thread")"
		set_file "$thread" "add_device $interface@$cpu"
		devices="$devices $interface@$cpu"
		device=$pktgen/$interface@$cpu
		queue=$((cpu - ${cpus%-*}))
		for command in "count $most" "clone_skb 0" "burst $burst" "delay 0" "queue_map_min $queue" "queue_map_max $queue" \
			"dst_mac $mac" "udp_dst_min $port" "udp_dst_max $port" \
			"udp_src_min 1024" "udp_src_max $((source_ports > 1 ? 1024 + source_ports : 1024))" "flag UDPSRC_RND" "flag NO_TIMESTAMP" "$@"; do
			set_file "$device" "$command"
		done
		case $vip in
		*:*)
			set_file "$device" "dst6 $vip"
			set_file "$device" "src6 $first_source"
			set_file "$device" "flag UDPCSUM" # IPv6 has no UDP without a checksum
			;;
		*)
			# The last port and the last source are left out of a random choice.
			last=$((source_number + (sources > 1 ? sources : 0)))
			set_file "$device" "dst_min $vip"
			set_file "$device" "dst_max $vip"
			set_file "$device" "src_min $first_source"
			set_file "$device" "src_max $(dotted $last)"
			set_file "$device" "flag IPSRC_RND"
			;;
		esac
		[ -z "$vlan" ] || set_file "$device" "vlan_id $vlan"
		[ "$rate" -eq 0 ] || set_file "$device" "ratep $(((rate + threads * burst - 1) / (threads * burst)))" # of bursts
		cpu=$((cpu + 1))
	done
}

# run sends, until the count or the time limit is reached, and prints what was sent.
run() {
	echo "$interface: $flows flows ($sources sources with $source_ports ports) to $vip port $port at $mac, CPUs $cpus, at most $seconds s"
	# The write lasts as long as pktgen sends, and a signal to the writer ends both.
	# shellcheck disable=SC2016 # the inner shell expands it
	timeout -s INT "$seconds" sh -c 'echo start >"$1"' sh $pktgen/pgctrl 2>/dev/null || true
	for d in $devices; do
		# A thread that was stopped ends soon after the writer.
		tries=5
		until grep -q '^Result: *OK: *[0-9]*(' "$pktgen/$d" || [ $tries -eq 0 ]; do
			sleep 1
			tries=$((tries - 1))
		done
	done
	summary
	[ -z "$interrupted" ] || exit 130
}

# summary adds up what each thread says at its end: time and packets, rate, errors. An error is a packet that the driver did not take.
summary() {
	for d in $devices; do
		sed -n "s|^Result: *OK: *\([0-9]*\)([^)]*) [a-z]*, *\([0-9]*\).*|$d \1 \2|p; s|^ *\([0-9]*\)pps .*errors: *\([0-9]*\).*|\1 \2|p" \
			"$pktgen/$d" | tr '\n' ' '
		echo
	done | awk '
		NF != 5 { print "pktgen has not said what it sent: " $0; bad = 1; exit }
		{
			printf "  %s: %.0f packets in %.3f s, %.0f packets/s, %.0f errors\n", $1, $3, $2 / 1e6, $4, $5
			packets += $3; pps += $4; errors += $5
			if ($2 > longest) longest = $2
		}
		END {
			if (bad) exit 1
			printf "sent %.0f packets in %.3f s: %.0f packets/s, %.0f errors\n", packets, longest / 1e6, pps, errors
		}'
}
