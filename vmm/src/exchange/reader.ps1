# Runs what the file `command` beside this one says: a program, its directory, arguments and environment, each behind its
# length in four bytes, little endian, in UTF-8. For Windows PowerShell 5.1 and newer.
param([string]$File = (Join-Path $PSScriptRoot 'command'))
$ErrorActionPreference = 'Stop'
try {
    $bytes = [IO.File]::ReadAllBytes($File)
    $utf8 = New-Object Text.UTF8Encoding $false, $true
    $script:at = 4
    function Read-Number {
        $number = [BitConverter]::ToUInt32($bytes, $script:at)
        $script:at += 4
        return $number
    }
    function Read-Text {
        $length = Read-Number
        if ($length -gt $bytes.Length - $script:at) { throw "$File is cut off" }
        $text = $utf8.GetString($bytes, $script:at, $length)
        $script:at += $length
        return $text
    }
    # The one form that every program takes apart again in the same way (CommandLineToArgvW).
    function Join-Argument([string]$argument) {
        if ($argument -ne '' -and $argument -notmatch '[\s"]') { return $argument }
        $argument = $argument -replace '(\\*)"', '$1$1\"'
        $argument = $argument -replace '(\\+)$', '$1$1'
        return '"' + $argument + '"'
    }
    if (($bytes[0..3] -join ' ') -ne '65 72 67 1') { throw "$File is no command of this version" }
    $program = Read-Text
    $directory = Read-Text
    $arguments = @(for ($left = Read-Number; $left -gt 0; $left--) { Join-Argument (Read-Text) })
    for ($left = Read-Number; $left -gt 0; $left--) {
        $name = Read-Text
        $value = Read-Text
        # What the system does not let be set stays as it is.
        try { [Environment]::SetEnvironmentVariable($name, $value) } catch { }
    }
    $start = New-Object Diagnostics.ProcessStartInfo
    $start.FileName = $program
    $start.Arguments = $arguments -join ' '
    $start.WorkingDirectory = $directory
    $start.UseShellExecute = $false
    $process = [Diagnostics.Process]::Start($start)
    $process.WaitForExit()
    exit $process.ExitCode
} catch {
    [Console]::Error.WriteLine("anchorhold: $_")
    exit 125
}
