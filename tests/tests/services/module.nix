# The module, evaluated as NixOS does as far as it goes here: options to their defaults, mkIf and mkMerge to what they choose.
{ module, given }:

let
  inherit (builtins)
    all
    attrNames
    concatMap
    foldl'
    head
    isAttrs
    isList
    length
    listToAttrs
    ;

  lib = {
    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        type = "bool";
        default = false;
        description = what;
      };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    remove = element: builtins.filter (one: one != element);
    optional = condition: element: if condition then [ element ] else [ ];
    optionalString = condition: text: if condition then text else "";
    types = {
      bool = "bool";
      str = "str";
      package = "package";
      listOf = of: "list of ${of}";
    };
  };

  pkgs = {
    stdenv.hostPlatform.system = "x86_64-linux";
    formats.toml = _: {
      type = "toml";
      generate = name: value: "${name}: ${builtins.toJSON value}";
    };
  };

  # What was given, else the default; what there is no option for is an error, as in NixOS.
  values =
    path: options: given:
    assert all (name: options ? ${name} || throw "no option ${path}.${name}") (attrNames given);
    listToAttrs (
      map (name: {
        inherit name;
        value =
          let
            option = options.${name};
          in
          if (option._type or "") == "option" then
            given.${name} or option.default or (throw "${path}.${name} has no value")
          else
            values "${path}.${name}" option (given.${name} or { });
      }) (attrNames options)
    );

  # Definitions without what is not chosen.
  chosen =
    definition:
    if !(isAttrs definition) then
      [ definition ]
    else if (definition._type or "") == "if" then
      if definition.condition then chosen definition.content else [ ]
    else if (definition._type or "") == "merge" then
      concatMap chosen definition.contents
    else
      [ definition ];

  merge =
    definitions:
    let
      parts = concatMap chosen definitions;
      names = foldl' (seen: part: seen // part) { } parts;
    in
    if parts != [ ] && all isAttrs parts then
      listToAttrs (
        concatMap (
          name:
          let
            found = concatMap (part: if part ? ${name} then chosen part.${name} else [ ]) parts;
          in
          if found == [ ] then
            [ ]
          else
            [
              {
                inherit name;
                value = merge found;
              }
            ]
        ) (attrNames names)
      )
    else if all isList parts then
      builtins.concatLists parts
    else if length parts == 1 then
      head parts
    else
      throw "defined more than once";

  evaluated = import module { inherit config lib pkgs; };
  result = merge [ evaluated.config ];
  config = {
    services.anchorhold = values "services.anchorhold" evaluated.options.services.anchorhold given;
    inherit (result) environment;
  };
in
result
