# A module for NixOS: which doors of anchorhold are open on this machine.
#
#   imports = [ ./anchorhold.nix ];
#   services.anchorhold = { enable = true; package = ...; attach.enable = true; };
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.anchorhold;
  inherit (lib) mkEnableOption mkIf mkMerge mkOption types;
  toml = pkgs.formats.toml { };
  program = "${cfg.package}/bin/anchorhold";
in
{
  options.services.anchorhold = {
    enable = mkEnableOption "anchorhold, a sandboxed build executor";

    package = mkOption {
      type = types.package;
      description = "The package with {file}`bin/anchorhold`.";
    };

    settings = mkOption {
      type = toml.type;
      default = { };
      example = {
        memory = "8G";
        trusted-users = [ "@wheel" ];
      };
      description = "What {file}`/etc/anchorhold/anchorhold.toml` says; `anchorhold config show` lists all settings.";
    };

    attach = {
      enable = mkEnableOption "building for this machine's Nix (2.32 or later) as its external builder";

      systems = mkOption {
        type = types.listOf types.str;
        default =
          [ pkgs.stdenv.hostPlatform.system ]
          ++ lib.optional (pkgs.stdenv.hostPlatform.system == "x86_64-linux") "i686-linux";
        description = ''
          The systems whose derivations are built by anchorhold. Those of others that this Nix can build are built in its own
          sandbox.
        '';
      };

      extraArguments = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "--option" "memory" "8G" ];
        description = "What follows `anchorhold attach`.";
      };
    };

    hook = {
      enable = mkEnableOption "building for this machine's Nix (2.4 or later) as its build hook";

      exclusive = mkOption {
        type = types.bool;
        default = true;
        description = ''
          Leave the hook as the only way to build. Without this, a derivation with `preferLocalBuild` is built in Nix's own sandbox,
          and whoever may use Nix can write such a derivation.
        '';
      };
    };

    storeServer.enable = mkEnableOption "anchorhold's own store and builder on {file}`/run/anchorhold-store/socket`";

    ssh = {
      enable = mkEnableOption "a user through whom other machines reach a store and a builder by ssh";

      user = mkOption {
        type = types.str;
        default = "anchorhold-builder";
        description = "The user. Its store is in its home, {file}`/var/lib/anchorhold-builder` for this name.";
      };

      trusted = mkOption {
        type = types.bool;
        default = true;
        description = ''
          Whether clients are believed. Clients that are not can bring only paths that are content-addressed or signed by a key of
          `trusted-public-keys`.
        '';
      };

      authorizedKeys = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "The keys of the clients. They share the store and can say what is in it.";
      };
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [
        {
          assertion = !(cfg.attach.enable && cfg.hook.enable);
          message = "services.anchorhold: attach and hook are two doors of one Nix. Choose attach where Nix is 2.32 or later.";
        }
      ];
      environment.systemPackages = [ cfg.package ];
      environment.etc."anchorhold/anchorhold.toml".source = toml.generate "anchorhold.toml" cfg.settings;
    }

    (mkIf cfg.attach.enable {
      nix.settings = {
        extra-experimental-features = [ "external-builders" ];
        # Else Nix adds the levels of x86_64, and builds x86_64-v1-linux in its own sandbox.
        extra-platforms = lib.remove pkgs.stdenv.hostPlatform.system cfg.attach.systems;
        external-builders = builtins.toJSON [
          {
            inherit (cfg.attach) systems;
            inherit program;
            args = [ "attach" ] ++ cfg.attach.extraArguments;
          }
        ];
      };
    })

    (mkIf cfg.hook.enable {
      nix.settings.build-hook = [
        program
        "hook"
      ];
      # Nix does not ask the hook for what it can build itself and is told to prefer to. It can build nothing itself if its system
      # is one that nobody uses. In the environment of the daemon alone: in nix.conf it would change what clients evaluate.
      systemd.services.nix-daemon.environment = mkIf cfg.hook.exclusive {
        NIX_CONFIG = "system = hook-only\nextra-platforms =";
      };
    })

    # The same as ../systemd/anchorhold-store.socket and .service, which say why; a test keeps them the same.
    (mkIf cfg.storeServer.enable {
      systemd.sockets.anchorhold-store = {
        description = "Socket of anchorhold's store and builder";
        wantedBy = [ "sockets.target" ];
        socketConfig = {
          ListenStream = "/run/anchorhold-store/socket";
          DirectoryMode = "0755";
          SocketMode = "0666";
          RemoveOnStop = "yes";
        };
      };
      systemd.services.anchorhold-store = {
        description = "anchorhold's store and builder for Nix clients";
        requires = [ "anchorhold-store.socket" ];
        after = [ "anchorhold-store.socket" ];
        restartTriggers = [ config.environment.etc."anchorhold/anchorhold.toml".source ];
        serviceConfig = {
          Type = "exec";
          ExecStart = "${program} store-server --listen-stdin";
          StandardInput = "socket";
          StandardOutput = "journal";
          StandardError = "journal";
          Restart = "on-failure";
          Delegate = "yes";
          TasksMax = "infinity";
          LimitNOFILE = "1048576";
          OOMPolicy = "continue";
          KillMode = "mixed";
          ProtectSystem = "strict";
          StateDirectory = "anchorhold";
          StateDirectoryMode = "0755";
          RuntimeDirectory = "anchorhold";
          RuntimeDirectoryMode = "0700";
          RuntimeDirectoryPreserve = "yes";
          ReadWritePaths = "-/nix/var/nix/userpool";
          ProtectHome = "yes";
          PrivateTmp = "yes";
          UMask = "0022";
          CapabilityBoundingSet = "CAP_SYS_ADMIN CAP_SETUID CAP_SETGID CAP_SETFCAP CAP_CHOWN CAP_FOWNER CAP_DAC_OVERRIDE CAP_SYS_PTRACE CAP_KILL";
          AmbientCapabilities = "";
          NoNewPrivileges = "yes";
          DevicePolicy = "closed";
          DeviceAllow = [
            "/dev/kvm rw"
            "/dev/net/tun rw"
          ];
        };
      };
    })

    (mkIf cfg.ssh.enable {
      users.groups.${cfg.ssh.user} = { };
      users.users.${cfg.ssh.user} = {
        isSystemUser = true;
        group = cfg.ssh.user;
        home = "/var/lib/${cfg.ssh.user}";
        createHome = true;
        # sshd starts the forced command by the user's shell.
        useDefaultShell = true;
        openssh.authorizedKeys.keys = cfg.ssh.authorizedKeys;
      };
      services.openssh = {
        enable = true;
        # As ../ssh/sshd_config, which says why.
        extraConfig = ''
          Match User ${cfg.ssh.user}
              ForceCommand ${program} store-server${lib.optionalString (!cfg.ssh.trusted) " --untrusted"}
              AuthenticationMethods publickey
              AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u
              DisableForwarding yes
              PermitTTY no
              PermitUserRC no
              ClientAliveInterval 15
              ClientAliveCountMax 4
          Match all
        '';
      };
    })
  ]);
}
