from ..record import recorder

CTRexVmInsFixHwCs = recorder("CTRexVmInsFixHwCs", L4_TYPE_UDP=11, L4_TYPE_TCP=13, L4_TYPE_IP=17)
STLPktBuilder = recorder("STLPktBuilder", "pkt", "pkt_buffer", "vm", "path_relative_to_profile", "build_raw", "remove_fcs")
STLScVmRaw = recorder("STLScVmRaw", "list_of_commands", "cache_size")
STLStream = recorder("STLStream", "name", "packet", "mode", "enabled", "self_start", "isg", "flow_stats", "next", "stream_id",
                     "action_count", "random_seed", "mac_src_override_by_pkt", "mac_dst_override_mode", "dummy_stream",
                     "core_id")
STLTXCont = recorder("STLTXCont", "pps", "bps_L1", "bps_L2", "percentage")
STLVmFixChecksumHw = recorder("STLVmFixChecksumHw", "l3_offset", "l4_offset", "l4_type")
STLVmFlowVar = recorder("STLVmFlowVar", "name", "init_value", "min_value", "max_value", "size", "step", "op", "split_to_cores")
STLVmTupleGen = recorder("STLVmTupleGen", "name", "ip_min", "ip_max", "port_min", "port_max", "limit_flows", "flags")
STLVmWrFlowVar = recorder("STLVmWrFlowVar", "fv_name", "pkt_offset", "offset_fixup", "add_val", "is_big")
