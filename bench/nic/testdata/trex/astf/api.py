from ..record import recorder

ASTFAssociationRule = recorder("ASTFAssociationRule", "port", "ip_start", "ip_end", "l7_map")
ASTFIPGen = recorder("ASTFIPGen", "dist_client", "dist_server", "glob")
ASTFIPGenDist = recorder("ASTFIPGenDist", "ip_range", "distribution", "per_core_distribution")
ASTFIPGenGlobal = recorder("ASTFIPGenGlobal", "ip_offset")
ASTFProfile = recorder("ASTFProfile", "default_ip_gen", "default_c_glob_info", "default_s_glob_info", "templates", "cap_list",
                       "tunnel_gen")
ASTFTCPClientTemplate = recorder("ASTFTCPClientTemplate", "ip_gen", "cluster", "program", "port", "cps", "glob_info", "limit",
                                 "cont")
ASTFTCPServerTemplate = recorder("ASTFTCPServerTemplate", "program", "assoc", "glob_info")
ASTFTemplate = recorder("ASTFTemplate", "client_template", "server_template", "tg_name")


class ASTFProgram(recorder("ASTFProgram", "file", "side", "commands", "stream", "udp_mtu")):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.given["steps"] = []

    def connect(self):
        self.given["steps"].append("connect")

    def send(self, buf):
        self.given["steps"].append("send %d" % len(buf))

    def recv(self, bytes, clear=False):
        self.given["steps"].append("recv %d" % bytes)

    def wait_for_peer_close(self):
        self.given["steps"].append("wait_for_peer_close")
